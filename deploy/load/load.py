#!/usr/bin/env python3
"""Load for a Clotho server: streams of POST /v1/sample, and what its clients see. Needs aiohttp.

    load.py --url http://127.0.0.1:8080 --streams 64 --seconds 30      closed loop: 64 clients, each asks again at once
    load.py --url https://clotho --cacert tls.crt --rate 20 --seconds 30   open loop: 20 requests a second, Poisson

An open loop shows what a closed one hides: requests that have to wait because others are slow. Streams that are
unfinished when the time is over are closed and count as neither whole nor broken; what their particles drew counts.
A 429 is an honest answer and is counted apart; a client waits as Retry-After says before it asks again.
"""
import argparse
import asyncio
import json
import random
import ssl
import sys
import time
from collections import Counter

import aiohttp

RETRY_SECONDS = 1.0  # after an error, and after a 429 without Retry-After


class Record:
    """What was seen between the end of the warm-up and the end."""

    def __init__(self, begin):
        self.begin = begin
        self.first, self.whole = [], []  # seconds
        self.tokens = self.events = self.size = self.refused = self.cut = 0
        self.errors = Counter()

    def has_begun(self):
        return time.monotonic() >= self.begin


async def read(answer, begun, record):
    """Follow a stream to its end. Returns what is wrong with it, or None."""
    last, rest, seen_first = b"", b"", False
    async for data in answer.content.iter_any():
        counts = record.has_begun()
        if counts and not seen_first:
            record.first.append(time.monotonic() - begun)
        seen_first = True
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            last = line
            if counts and line.startswith(b'{"event":"step"'):
                record.tokens += json.loads(line)["active"]
        if counts:
            record.events += len(lines)
            record.size += len(data)
    if last.startswith(b'{"event":"done"'):
        return None
    return "error event" if last.startswith(b'{"event":"error"') else "no done"


async def ask(session, o, record):
    """One request. Returns how long to wait before the next."""
    begun = time.monotonic()
    try:
        async with session.post(o.url + "/v1/sample", data=o.body) as answer:
            if answer.status == 429:
                record.refused += record.has_begun()
                return float(answer.headers.get("Retry-After", RETRY_SECONDS))
            wrong = await read(answer, begun, record) if answer.status == 200 else f"status {answer.status}"
    except asyncio.CancelledError:
        record.cut += 1
        raise
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        wrong = type(error).__name__
    if not record.has_begun():
        return 0
    if wrong:
        record.errors[wrong] += 1
        return RETRY_SECONDS
    record.whole.append(time.monotonic() - begun)
    return 0


async def closed_client(session, o, record):
    while True:
        wait = await ask(session, o, record)
        if wait:
            await asyncio.sleep(wait)


async def open_loop(session, o, record):
    """Arrivals do not wait for anyone."""
    async with asyncio.TaskGroup() as requests:
        while True:
            requests.create_task(ask(session, o, record))
            await asyncio.sleep(random.expovariate(o.rate))


async def run(o):
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {o.key}"} if o.key else {})
    tls = ssl.create_default_context(cafile=o.cacert) if o.url.startswith("https") else False
    connector = aiohttp.TCPConnector(limit=0, ssl=tls)
    record = Record(time.monotonic() + o.warm_up)
    async with aiohttp.ClientSession(connector=connector, headers=headers,
                                     timeout=aiohttp.ClientTimeout(None)) as session:
        if o.rate:
            tasks = [asyncio.create_task(open_loop(session, o, record))]
        else:
            tasks = [asyncio.create_task(closed_client(session, o, record)) for _ in range(o.streams)]
        done, _ = await asyncio.wait(tasks, timeout=o.warm_up + o.seconds)
        seconds = time.monotonic() - record.begin
        for task in done:  # none ends by itself but by a mistake of ours
            task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return report(o, record, seconds)


def percentiles(values):
    """Nearest rank, seconds; None where there is nothing to rank."""
    ordered = sorted(values)
    return {f"p{p}": ordered[min(len(ordered) * p // 100, len(ordered) - 1)] if ordered else None
            for p in (50, 95, 99)}


def report(o, record, seconds):
    return {
        "streams": o.streams, "rate": o.rate, "seconds": seconds,
        "whole": len(record.whole), "cut_at_the_end": record.cut, "refused_429": record.refused,
        "errors": dict(record.errors),
        "first_event_seconds": percentiles(record.first), "completion_seconds": percentiles(record.whole),
        "particle_tokens_per_second": record.tokens / seconds,
        "events_per_second": record.events / seconds, "bytes_per_second": record.size / seconds,
        "client_cpu": time.process_time() / (o.warm_up + o.seconds),
    }


COLUMNS = ("streams  whole    429  errors   first event ms p50    p95    p99   completion s p50    p95    p99"
           "   tokens/s  events/s  client CPU")


def row(r):
    def three(values, scale, width, digits):
        return " ".join(f"{'-' if values[p] is None else format(values[p] * scale, f'.{digits}f'):>{width}}"
                        for p in ("p50", "p95", "p99"))

    load = f"{r['rate']:g}/s" if r["rate"] else r["streams"]
    return (f"{load:>7} {r['whole']:>6} {r['refused_429']:>6} {sum(r['errors'].values()):>7}"
            f"   {three(r['first_event_seconds'], 1000, 6, 0):>34} {three(r['completion_seconds'], 1, 6, 2):>34}"
            f" {r['particle_tokens_per_second']:>10.0f} {r['events_per_second']:>9.0f} {r['client_cpu']:>9.0%}")


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="http://127.0.0.1:8080")
    p.add_argument("--streams", type=int, default=16, help="clients of a closed loop")
    p.add_argument("--rate", type=float, help="requests a second of an open loop, instead")
    p.add_argument("--seconds", type=float, default=30, help="that are measured")
    p.add_argument("--warm-up", type=float, default=2, help="seconds before them")
    p.add_argument("--prompt", default="Once upon a time")
    p.add_argument("--particles", type=int, default=4)
    p.add_argument("--max-tokens", type=int, default=32)
    p.add_argument("--fields", type=json.loads, default={}, help="further fields of the request, as JSON")
    p.add_argument("--key")
    p.add_argument("--cacert", help="the certificate to trust")
    p.add_argument("--json", action="store_true", help="one JSON object, no table")
    o = p.parse_args()
    o.body = json.dumps({"prompt": o.prompt, "particles": o.particles, "max_tokens": o.max_tokens,
                         "ignore_eos": True} | o.fields)
    return o


def main():
    o = options()
    result = asyncio.run(run(o))
    if o.json:
        print(json.dumps(result))
    else:
        print(COLUMNS, row(result), sep="\n")
        for kind, n in result["errors"].items():
            print(f"  {n} x {kind}")
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
