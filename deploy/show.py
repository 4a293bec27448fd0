#!/usr/bin/env python3
"""Show an answer of /v1/sample: curl -sN --json '{...}' URL/v1/sample | deploy/show.py [HOLE]

Progress while it comes, then the samples in order of weight; equal texts are one row. With the name of a hole, the
distribution of what is in it."""
import json
import signal
import sys

ROWS = 8


def number(x):
    """JSON's null is minus infinity."""
    return "-inf" if x is None else f"{x:.2f}"


def progress(event):
    if sys.stderr.isatty():
        print(f"\r  token {event['step']:3d}   live particles {event['active']:4d}   effective {event['ess']:6.1f}"
              f"   log Z {number(event['log_z'])}\033[K", end="", file=sys.stderr, flush=True)


def distinct(samples, hole):
    """[(text, weight, a sample)], heaviest first."""
    rows = {}
    for sample in samples:
        text = sample["holes"][hole] if hole else sample["text"]
        weight = rows[text][1] if text in rows else 0.0
        rows[text] = (text, weight + sample["weight"], sample)
    return sorted(rows.values(), key=lambda row: -row[1])


def table(samples, hole):
    rows = distinct(samples, hole)
    print("  weight " + (hole if hole else "   log p  log phi  sample"))
    for text, weight, sample in rows[:ROWS]:
        logs = "" if hole else f" {number(sample['log_p']):>7}  {number(sample['log_phi']):>7} "
        print(f"  {weight:.4f}{logs} {text!r}")
    if len(rows) > ROWS:
        print(f"  {sum(weight for _, weight, _ in rows[ROWS:]):.4f} {len(rows) - ROWS} others")


def main(hole=None):
    samples = []
    for event in map(json.loads, sys.stdin):
        kind = event.get("event", "error")
        if kind == "step":
            progress(event)
        elif kind == "sample":
            samples.append(event)
        elif kind == "error":
            sys.exit(f"the server says: {event['error']['message']}")
        elif kind == "done":
            if sys.stderr.isatty():
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            table(samples, hole)
            print(f"log Z {number(event['log_z'])}, effective sample size {event['ess']:.1f} of {len(samples)}")
            return
    sys.exit("the answer broke off")


if __name__ == "__main__":
    for quiet in signal.SIGINT, signal.SIGPIPE:
        signal.signal(quiet, signal.SIG_DFL)
    main(*sys.argv[1:])
