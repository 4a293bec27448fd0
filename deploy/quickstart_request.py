#!/usr/bin/env python3
"""Ask a running server for one posterior and show it: quickstart_request.py URL

The question is infilling: how could a text that starts with PROMPT go on, given that it ends with ENDING?"""
import json
import sys
import urllib.request

PROMPT = "The weather was"
ENDING = ", so we stayed at home and read books by the fire."
REQUEST = {
    "prompt": PROMPT,
    "particles": 128,
    "max_tokens": 8,
    "seed": 1,
    "potential": {"type": "continuation", "text": ENDING},
}
ROWS = 8


def events(url, body):
    request = urllib.request.Request(url + "/v1/sample", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            yield json.loads(line)


def number(x):
    """JSON's null is minus infinity."""
    return "-inf" if x is None else f"{x:.2f}"


def progress(event):
    if sys.stdout.isatty():
        print(f"\r  token {event['step']:2d}  live particles {event['active']:4d}  effective {event['ess']:6.1f}"
              f"  log Z {number(event['log_z'])}\033[K", end="", flush=True)


def distinct(samples):
    """Equal texts are one row; their weights add up."""
    rows = {}
    for sample in samples:
        row = rows.setdefault(sample["text"], dict(sample, weight=0.0))
        row["weight"] += sample["weight"]
    return sorted(rows.values(), key=lambda row: -row["weight"])


def table(samples):
    rows = distinct(samples)
    print("   weight    log p  log phi  sample")
    for row in rows[:ROWS]:
        print(f"  {row['weight']:7.4f}  {number(row['log_p']):>7}  {number(row['log_phi']):>7}  {row['text']!r}")
    if len(rows) > ROWS:
        rest = sum(row["weight"] for row in rows[ROWS:])
        print(f"  {rest:7.4f}                    {len(rows) - ROWS} others")


def main(url):
    print(f"{REQUEST['particles']} samples of ... in {PROMPT + '...' + ENDING!r}:")
    samples = []
    for event in events(url, REQUEST):
        kind = event["event"]
        if kind == "step":
            progress(event)
        elif kind == "sample":
            samples.append(event)
        elif kind == "error":
            sys.exit(f"the server says: {event['error']['message']}")
        elif kind == "done":
            if sys.stdout.isatty():
                print("\r\033[K", end="")
            table(samples)
            print(f"log Z {number(event['log_z'])}, effective sample size {event['ess']:.1f}")
            return
    sys.exit("the answer broke off")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
