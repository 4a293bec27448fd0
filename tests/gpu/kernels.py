#!/usr/bin/env python3
"""What the compiler made of each kernel: registers, shared memory, spills, and how wide it reads and writes.

    tests/gpu/kernels.py [LIBRARY] [--cuobjdump PATH]

Reads a plug-in that has been built, build/release/libclotho-cuda.so unless told; needs no GPU. Exits 1 when a kernel uses
local memory, which is where spilled registers go, when a kernel that memory bounds never loads 16 bytes at once, and when
a kernel is in neither of the lists below. Columns: registers of a thread; warps of a multiprocessor (of 64) that have room
in its registers; shared memory, the driver's own 1024 bytes, without what a launcher asks for, which the compiler does not
know; bytes of local memory and instructions that use it; loads and stores of global memory, and in brackets those of 16 bytes.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[2]

MEMORY_BOUND = {  # whose time is that of the bytes they move, and why there are many of these
    "adam_kernel": "weights, two moments and a gradient, each read and written",
    "attend_kernel": "keys and values of every context",
    "convert_kernel": "weights after each update",
    "copy_rows_kernel<uint4>": "hidden states; any rows of whole 16 bytes",
    "kv_copy_kernel": "pages, when particles part",
    "log_sigmoid_kernel": "log ψ of the whole vocabulary",
    "propose_grad_kernel": "logits and their gradient",
    "propose_kernel": "logits, dense log ψ",
    "relu_grad_kernel": "a layer of a head",
    "relu_kernel": "a layer of a head",
    "rmsnorm_kernel": "the residual stream, twice a layer",
    "rope_store_kernel": "queries, keys and values of a layer",
    "sparse_dw_kernel": "rows of a head's weights",
    "sparse_dx_kernel": "rows of a head's weights",
    "swiglu_kernel": "the widest activations of a layer",
}
OTHER = {  # and what bounds them
    "compare_kernel": "when a shape of matrices is first seen, no other time",
    "copy_rows_kernel<unsigned char>": "rows of no whole words: none of a model's",
    "copy_rows_kernel<unsigned int>": "rows of no whole 16 bytes: an index for each row, odd widths",
    "db_kernel": "little beside the product of the same gradients; a warp reads 128 adjacent bytes",
    "embed_kernel": "once a step a row of a few KiB each; most of the file's formats align to 2 bytes",
    "noise_kernel": "when a shape of matrices is first seen, no other time",
    "product_kernel": "arithmetic",
    "resample_kernel": "latency: a few bytes a particle",
    "rope_store_odd_kernel": "heads of odd widths: no known model's",
    "swiglu_odd_kernel": "layers of odd widths: no known model's",
    "top_kernel": "the second-level cache: some looks at a row, where log-probabilities are wanted",
    "unpack_kernel": "when a model is loaded: the way from the host",
}


def find_tool(given):
    folders = [None, os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"),
               os.path.join(sysconfig.get_path("purelib"), "nvidia/cu13/bin")]
    found = given or next(filter(None, (shutil.which("cuobjdump", path=f) for f in folders)), None)
    if not found:
        sys.exit("kernels.py: no cuobjdump on the PATH, in CUDA_HOME or /usr/local/cuda, or from PyPI; "
                 "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return found


def output_of(*command):
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        sys.exit(f"kernels.py: {' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def short_names(names):
    """As a reader writes them: without return type, arguments and what only the compiler needs."""
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    for name, line in zip(names, plain.splitlines()):
        line = re.sub(r"^(static )?void ", "", line).replace("(anonymous namespace)::", "")
        line = re.sub(r"\(.*", "", re.sub(r"\((bool|int|unsigned int)\)", "", line))
        line = re.sub(r"<shape<(.*)> ?>", r"<\1>", line).replace("unsigned short", "bf16")
        yield name, line


def resources(report):
    """Registers, shared memory and local memory of each kernel, by its mangled name."""
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", report)
    return {name: {"registers": int(registers), "shared": int(shared), "local": int(stack) + int(local)}
            for name, registers, stack, shared, local in found}


def accesses(sass):
    """Counts of each kernel's instructions: loads, stores, those of 16 bytes, spills."""
    kernels, count = {}, None
    for line in sass.splitlines():
        if found := re.match(r"\s*Function : (\S+)", line):
            count = kernels[found[1]] = {"loads": 0, "loads16": 0, "stores": 0, "stores16": 0, "spills": 0}
        elif found := re.search(r"\s(LDG|STG|LD|ST|LDL|STL)(\.\S+)?\s.*;", line):
            if found[1] in ("LDL", "STL"):
                count["spills"] += 1
                continue
            kind = "loads" if found[1].startswith("L") else "stores"
            count[kind] += 1
            count[kind + "16"] += ".128" in (found[2] or "")
    return kernels


def warps(registers):
    """Of a multiprocessor: its four parts have 16384 registers each, and give them to a warp in units of 8 a lane."""
    return min(64, 16384 // (32 * (registers + 7 & ~7)) * 4)


def print_table(kernels):
    print(f"{'kernel':35} {'registers':>9} {'warps':>5} {'shared':>6} {'local':>5} {'spills':>6} "
          f"{'loads':>9} {'stores':>8}")
    for name, k in kernels.items():
        print(f"{name:35} {k['registers']:9} {warps(k['registers']):5} {k['shared']:6} {k['local']:5} {k['spills']:6} "
              f"{k['loads']:4} ({k['loads16']:2}) {k['stores']:3} ({k['stores16']:2})")


def listed(name, names):
    return name in names or name.split("<")[0] in names


def complaints(kernels):
    if not kernels:
        yield "no kernels for sm_90"
    for name, k in kernels.items():
        if k["local"] or k["spills"]:
            yield f"{name}: {k['local']} bytes of local memory, used by {k['spills']} instructions"
        if listed(name, MEMORY_BOUND) and not k["loads16"]:
            yield f"{name} is bound by memory, and never loads 16 bytes at once"
        if not listed(name, MEMORY_BOUND) and not listed(name, OTHER):
            yield f"{name} is neither in MEMORY_BOUND nor in OTHER"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="?", type=pathlib.Path, default=ROOT / "build/release/libclotho-cuda.so")
    parser.add_argument("--cuobjdump")
    args = parser.parse_args()
    if not args.library.exists():
        sys.exit(f"kernels.py: no {args.library}: build the target clotho-cuda first")
    tool = find_tool(args.cuobjdump)
    found = resources(output_of(tool, "-arch", "sm_90", "-res-usage", args.library))
    counts = accesses(output_of(tool, "-arch", "sm_90", "-sass", args.library))
    kernels = dict(sorted((short, found[name] | counts[name]) for name, short in short_names(list(found))))
    print_table(kernels)
    wrong = list(complaints(kernels))
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
