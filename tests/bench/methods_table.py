#!/usr/bin/env python3
"""All methods of learning on one rare target that can be enumerated, as a table in Markdown.

    python tests/bench/methods_table.py                  print it
    python tests/bench/methods_table.py docs/methods.md  and put it into the page, between its marks

Both divergences are exact: the proposal is computed in float64 from the twist's file and summed over
all texts. The gaps are those that /v1/bounds reports, of 1000 runs of K particles from below and above.
"""
import argparse
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import rare  # noqa: E402
from support.bounds import bound  # noqa: E402
from support.make_model import Shape, make_model  # noqa: E402
from support.reference import Model  # noqa: E402
from support.server import TINY_FLAGS, Server  # noqa: E402
from support.twist import Induced  # noqa: E402

SEEDS = (1, 2, 3)
RUNS = 1000
EXACT, OWN, PRIOR = "exact draws", "its own draws", "the prior's draws"
ROWS = [("ctl", EXACT), ("rl", EXACT), ("sixo", EXACT), ("dpg", EXACT),
        ("ctl", OWN), ("rl", OWN), ("sixo", OWN), ("dpg", OWN), ("fudge", PRIOR)]
HEADER = ("| method | learns from | KL(σ‖q) | KL(q‖σ) | gap, IS | gap, SMC | CPU s |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
MARKS = re.compile("(?<=<!-- table -->\n).*(?=<!-- end of table -->)", re.S)


def gaps(server, target, twist):
    """Without resampling, and where ESS < K/2."""
    return [bound(server, target, RUNS, particles=rare.K, twist=twist,
                  resampling={"ess_threshold": t}).answers[0]["gap"] for t in (0, 0.5)]


def measure(server, target, folder, method, source, seed):
    """The numbers of a row, of one seed."""
    targets = {"targets": rare.positives(target, seed=seed)} if source == EXACT else {}
    begun = server.cpu_seconds()
    found, _ = rare.learn(server, target, folder, "row", method=method, seed=seed, **targets)
    seconds = server.cpu_seconds() - begun
    return [found.kl_from_target(), found.kl_to_target(),
            *gaps(server, target, {"type": "learned", "name": "row"}), seconds]


def base(server, target):
    found = Induced(target)
    return [found.kl_from_target(), found.kl_to_target(), *gaps(server, target, {"type": "none"}), 0]


def row(name, source, *numbers):
    """Means over seeds, with the range where there are several."""
    def cell(values):
        text = f"{np.mean(values):.2g}"
        return text if len(values) == 1 else f"{text} ({min(values):.2g}–{max(values):.2g})"

    *cells, seconds = np.array(numbers).T
    return f"| {name} | {source} | {' | '.join(map(cell, cells))} | {np.mean(seconds):.1f} |"


def table(server, target, folder):
    yield HEADER
    yield row("base", "–", base(server, target))
    for method, source in ROWS:
        yield row(method, source, *(measure(server, target, folder, method, source, seed)
                                    for seed in SEEDS))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path, help="a page with marks to put the table between")
    page, lines = parser.parse_args().page, []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        make_model(path, Shape(**rare.SHAPE))
        target = rare.problem(Model(path), rare.SOFT)
        with Server(path, *TINY_FLAGS, "--dtype", "f32", "--twist-dir", folder) as server:
            for line in table(server, target, folder):
                print(line, flush=True)
                lines.append(line)
    if page:
        text, n = MARKS.subn(lambda _: "\n".join(lines) + "\n", page.read_text())
        if n != 1:
            sys.exit(f"{page}: it has no marks")
        page.write_text(text)


if __name__ == "__main__":
    main()
