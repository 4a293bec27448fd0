#!/usr/bin/env python3
"""What report.sh has measured, as Markdown: render.py FOLDER MODEL REQUEST SERVER_FLAGS"""
import datetime
import json
import os
import re
import sys
from pathlib import Path

MIB = 1 << 20


def cpu():
    return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]


def ms(value):
    return "–" if value is None else f"{1000 * value:,.0f}"


def s(value):
    return "–" if value is None else f"{value:.2f}"


def errors(r):
    return "0" if not r["errors"] else ", ".join(f"{n} {kind}" for kind, n in r["errors"].items())


def load_row(r, bench):
    first, whole = r["first_event_seconds"], r["completion_seconds"]
    name = f"{r['rate']:g} a second" if r["rate"] else f"{r['streams']:,}"
    rate = r["particle_tokens_per_second"]
    return (f"| {name} | {r['whole']:,} | {r['refused_429']:,} | {errors(r)} "
            f"| {' / '.join(ms(first[p]) for p in first)} | {' / '.join(s(whole[p]) for p in whole)} "
            f"| {rate:,.0f} | {rate / bench:.0%} | {r['events_per_second']:,.0f} | {r['client_cpu']:.0%} |")


def events_row(name, r):
    return (f"| {name} | {r['whole']:,} | {r['refused'] + r['torn'] + r['socket_errors']} | {r['events_per_second']:,} "
            f"| {r['bytes_per_event']} | {r['p50_seconds']:.2f} / {r['p99_seconds']:.2f} |")


def main():
    folder, model, request, flags = Path(sys.argv[1]), *sys.argv[2:]
    names = ("bench_before", "bench_after", "load_1", "load_16", "load_128", "load_1024", "load_open", "memory_0",
             "memory_1", "events_direct", "events_nginx")
    r = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    before, after = (r[f"bench_{when}"]["rows_per_second"] for when in ("before", "after"))
    bench = (before + after) / 2
    rows = "\n".join(load_row(r[name], bench) for name in names if name.startswith("load_"))
    print(f"""# Under load

`deploy/load/report.sh` wrote this on {datetime.date.today()}, with {model} on {os.cpu_count()} cores of
{cpu()}, which the server, nginx and the clients shared.

## Streams through nginx

TLS, HTTP/1.1, one server behind `deploy/nginx`; each request `{request}`, no end before the last token. Server:
`{flags}`, 256 rows a step. Without HTTP, `clotho bench --particles 256` draws {before:,.0f} tokens a
second before these runs and {after:,.0f} after them; the mean of the two is 100 %.

| streams | whole answers | 429 | errors | first event ms, p50 / p95 / p99 | completion s, p50 / p95 / p99 | particle-tokens/s | of bench | events/s | client's CPU |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Streams ask again as soon as they are answered; "a second" is an open loop of Poisson arrivals. Tokens and events are those
that reached the clients within the time measured.

The server had {r['memory_0']['now'] / MIB:,.0f} MiB resident before, at most {r['memory_1']['peak'] / MIB:,.0f} MiB during and \
{r['memory_1']['now'] / MIB:,.0f} MiB after these runs.

## The HTTP layer alone

1,000 streams of 100 events from an engine that does not think (`clotho-stub`, a step every 10 ms), read by wrk on the same
cores. Bytes are those on the wire, over events.

| way | whole answers | not | events/s | bytes an event | seconds a stream, p50 / p99 |
| --- | --- | --- | --- | --- | --- |
{events_row("direct", r["events_direct"])}
{events_row("nginx, TLS", r["events_nginx"])}

The engine above caused {r['load_1024']['events_per_second']:,.0f} events a second at 1,024 streams: \
{r['load_1024']['events_per_second'] / r['events_direct']['events_per_second']:.1%} of what the HTTP layer moves.""")


if __name__ == "__main__":
    main()
