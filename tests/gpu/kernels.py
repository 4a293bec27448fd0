#!/usr/bin/env python3
"""What the compiler made of each kernel: registers, shared memory, spills, and how wide it reads and writes.

    tests/gpu/kernels.py [--nvcc NVCC] [--nvdisasm NVDISASM] [FILE.cu ...]

Compiles kernels/*.cu for sm_90 with the flags of the build; needs no GPU. Exits 1 when a kernel spills registers or uses
local memory, or when a memory-bound operation has no kernel that loads 16 bytes at once. That, and the columns of
loads and stores in global memory (all of them, and those of 16 bytes), are left out where there is no nvdisasm. Shared
memory that a launcher asks for is not in the table: the compiler does not know it.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-gencode=arch=compute_90,code=sm_90", "-cubin", "-Xptxas", "-v"]
MEMORY_BOUND = ["activate", "adam", "attend", "copy", "embed", "norm", "propose", "rope", "swiglu"]


def tool(name, given):
    """Its path, or None."""
    beside = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    return given or shutil.which(name) or shutil.which(name, path=beside)


def demangle(names):
    """Names as a reader writes them: without the return type and the arguments."""
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = []
    for line in plain.splitlines():
        line = re.sub(r"^(void|static void) ", "", line).replace("(anonymous namespace)::", "")
        line = re.sub(r"\((bool|int|unsigned int)\)", "", line)  # of template arguments
        short.append(re.sub(r"\(.*", "", line).replace("unsigned short", "bf16"))
    return dict(zip(names, short))


def resources(report):
    """What ptxas says of each kernel, by its mangled name."""
    kernels, name = {}, None
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)'", line):
            name = found[1]
            kernels[name] = {"registers": 0, "shared": 0, "stack": 0, "spills": 0}
        elif name and (found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", line)):
            kernels[name]["stack"] = int(found[1])
            kernels[name]["spills"] = int(found[2]) + int(found[3])
        elif name and (found := re.search(r"Used (\d+) registers", line)):
            kernels[name]["registers"] = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name]["shared"] = int(shared[1]) if shared else 0
            name = None
    return kernels


def accesses(sass):
    """Loads and stores in global memory of each kernel: [loads, of 16 bytes, stores, of 16 bytes]."""
    kernels, count = {}, None
    for line in sass.splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.(\S+?),", line):
            count = kernels.setdefault(found[1], [0, 0, 0, 0])
        elif count and (found := re.search(r"\b(LDG|STG|LD|ST)\.E(\.[\w.]+)?\s", line)):
            at = 0 if found[1].startswith("L") else 2
            count[at] += 1
            count[at + 1] += ".128" in (found[2] or "")
    return kernels


def compile_file(source, nvcc, nvdisasm, folder):
    """(kernels of a file, what went wrong)."""
    cubin = pathlib.Path(folder, source.stem + ".cubin")
    done = subprocess.run([nvcc, *FLAGS, "-o", cubin, source], capture_output=True, text=True)
    if done.returncode != 0:
        return {}, f"{source.name} does not compile:\n{done.stderr}"
    kernels = resources(done.stdout + done.stderr)
    if nvdisasm and kernels:
        sass = subprocess.run([nvdisasm, cubin], capture_output=True, text=True)
        if sass.returncode != 0:
            return kernels, f"{source.name}: nvdisasm: {sass.stderr}"
        seen = accesses(sass.stdout)
        for name, kernel in kernels.items():
            kernel["access"] = seen.get(name, [0, 0, 0, 0])
    return kernels, None


def print_table(files):
    print(f"{'file':12} {'kernel':58} {'regs':>4} {'smem':>5} {'stack':>5} {'spills':>6} {'loads (16 B)':>13} {'stores (16 B)':>13}")
    for file, kernels in files.items():
        for name, k in sorted(kernels.items(), key=lambda item: item[0]):
            wide = ["", ""]
            if "access" in k:
                loads, loads16, stores, stores16 = k["access"]
                wide = [f"{loads} ({loads16})", f"{stores} ({stores16})"]
            print(f"{file:12} {name:58} {k['registers']:4} {k['shared']:5} {k['stack']:5} {k['spills']:6} "
                  f"{wide[0]:>13} {wide[1]:>13}")


def complaints(files):
    for file, kernels in files.items():
        for name, k in kernels.items():
            if k["spills"] or k["stack"]:
                yield f"{file}: {name} spills {k['spills']} bytes, and has {k['stack']} bytes of local memory"
        seen = [k["access"][1] for k in kernels.values() if "access" in k]
        if seen and file.removesuffix(".cu") in MEMORY_BOUND and not any(seen):
            yield f"{file}: no kernel loads 16 bytes at once"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc")
    parser.add_argument("--nvdisasm")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    args = parser.parse_args()
    nvcc, nvdisasm = tool("nvcc", args.nvcc), tool("nvdisasm", args.nvdisasm)
    if not nvcc:
        sys.exit("kernels.py: no nvcc")
    sources = args.files or sorted((ROOT / "kernels").glob("*.cu"))
    files, wrong = {}, []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda source: compile_file(source, nvcc, nvdisasm, folder), sources)
        for source, (kernels, trouble) in zip(sources, results):
            short = demangle(list(kernels)) if kernels else {}
            files[source.name] = {short[name]: kernel for name, kernel in kernels.items()}
            wrong += [trouble] if trouble else []
    print_table(files)
    wrong += complaints(files)
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
