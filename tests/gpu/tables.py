#!/usr/bin/env python3
"""The tables at the end of check.sh, from the logs in a folder: tests/gpu/tables.py FOLDER"""

import pathlib
import re
import sys


def lines(folder, name):
    path = pathlib.Path(folder, name + ".log")
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def errors(log):
    """Largest error of each operation as a fraction of its bound, on the CPU and on the device."""
    found, backend = {}, "?"
    for line in log:
        if part := re.match(r"== test_\w+ on (\w+)", line):
            backend = part[1]
        elif line.startswith("error "):
            _, worst, values, act, name = line.split(None, 4)
            found.setdefault((name, act), {})[backend] = (worst, values)
    yield f"{'operation':16} {'type':5} {'cpu':>7} {'cuda':>7} {'values':>9}"
    for (name, act), by in found.items():
        cpu, cuda = by.get("cpu", ("-", "")), by.get("cuda", ("-", "-"))
        yield f"{name:16} {act:5} {cpu[0]:>7} {cuda[0]:>7} {cuda[1]:>9}"


def numbers_of(log, first):
    """The lines of a table that begins with the word `first`, once with its head."""
    head = True
    for line in log:
        if line.split()[:1] == [first]:
            if head:
                yield line
            head = False
        elif not head and re.match(r"\w+ +\d+ +\d", line):
            yield line


def decode(log, torch_log):
    """Decode steps with PyTorch's beside them; those after a line "== … --fast" are marked."""
    torch = {}
    for line in torch_log:
        if found := re.match(r"(\w+) (\d+) ([\d.]+) ", line):
            torch[found[1], found[2]] = float(found[3])
    head, fast = True, False
    for line in log:
        if line.startswith("== "):
            fast = line.endswith("--fast")
        elif line.startswith("shape "):
            if head:
                yield f"{line} {'PyTorch ms':>11} {'times':>6}"
            head = False
        elif re.match(r"\w+ +\d+ +[\d.]+ ", line):
            shape, particles, ms = line.split()[:3]
            theirs = torch.get((shape, particles))
            beside = f"{theirs:11.3f} {theirs / float(ms):6.2f}" if theirs and not fast else ""
            yield f"{line} {'--fast' if fast else beside}"


def main():
    folder = sys.argv[1]
    sections = {
        "largest error / its bound": errors(lines(folder, "tests")),
        "operations": numbers_of(lines(folder, "operations"), "operation"),
        "decode steps": decode(lines(folder, "decode"), lines(folder, "torch")),
    }
    for title, table in sections.items():
        print(f"\n{title}")
        for line in table:
            print("  " + line.rstrip())


if __name__ == "__main__":
    main()
