"""What a machine does to a server: memory that is refused, a clock that jumps, a full or read-only
disk, clients in their thousands. It answers rightly, or with an error, or ends with a line that says
why; it is never wrong and never hangs. A device that fails is in test_device.py."""
import contextlib
import json
import mmap
import os
import random
import re
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
from support.server import TINY_FLAGS, Server
from support.shapes import ENDLESS
from support.watch import metric, wait_until
from wire import Wire, ask, get, post


class Faults:
    """The switches of faults.c, for one server."""
    SEEN, FAIL, JUMP = range(3)

    def __init__(self, library, path):
        path.write_bytes(bytes(24))
        with path.open("r+b") as f:
            self.memory = mmap.mmap(f.fileno(), 24)
        self.environment = {"LD_PRELOAD": str(library), "CLOTHO_FAULTS": str(path)}

    def __getitem__(self, switch):
        return struct.unpack_from("q", self.memory, 8 * switch)[0]

    def __setitem__(self, switch, value):
        struct.pack_into("q", self.memory, 8 * switch, value)


@pytest.fixture
def faults(clotho, tmp_path):
    library = Path(clotho).with_name("libclotho-faults.so")
    if not library.exists():
        pytest.skip("sanitizers have allocators of their own")
    return Faults(library, tmp_path / "faults")


# ------------------------------------------------------------------------------ memory

ASKED = {"prompt": "ab", "particles": 4, "max_tokens": 6, "seed": 3, "ignore_eos": True, "logprobs": True,
         "potential": [{"type": "regex", "pattern": "(a|b|c|d)*[abc]", "soft": -1.5},
                       {"type": "continuation", "text": "cd"}]}
SECONDS = 20


def result(reply, stream):
    """The samples of a whole answer; None if it is an error or broke off."""
    if reply.status != 200:
        error = reply.json()["error"]
        assert reply.status >= 500, error  # it is not the request that is wrong
        return None
    events = reply.events() if stream else [reply.json()]
    if events[-1].get("event") == "error":
        assert events[-1]["error"]["type"] in ("api_error", "overloaded_error")
        return None
    return [e for e in events if e["event"] == "sample"] if stream else events[0]["samples"]


def asked(server, stream):
    """The samples, or None; the connection may break off, but does not hang."""
    with contextlib.suppress(EOFError, ConnectionError, IndexError):
        return result(ask(server, post("/v1/sample", ASKED | {"stream": stream}), timeout=SECONDS), stream)


def lives(server, stream, wanted):
    """It goes on as before, or has ended."""
    end = time.monotonic() + SECONDS
    while server.process.poll() is None:
        if asked(server, stream) == wanted:
            return True
        assert time.monotonic() < end, "it neither answers nor ends"
        time.sleep(0.02)
    return False


def test_memory_that_is_refused(faults, model_file):
    """Each time another one of a request's allocations fails."""
    def start():
        faults[Faults.FAIL] = 0
        return Server(model_file(**ENDLESS), *TINY_FLAGS, "--log-level", "warn",
                      env=faults.environment).__enter__()

    server, r = start(), random.Random(1)
    for stream in (True, False):
        wanted = asked(server, stream)  # and all that is allocated once is
        before = faults[Faults.SEEN]
        assert asked(server, stream) == wanted and len(wanted) == 4
        n = faults[Faults.SEEN] - before
        for at in r.sample(range(1, n + 1), min(n, 40)):
            faults[Faults.FAIL] = faults[Faults.SEEN] + at
            assert asked(server, stream) in (None, wanted), f"allocation {at} of {n}"
            faults[Faults.FAIL] = 0
            if lives(server, stream, wanted):
                continue
            assert server.process.returncode in (-signal.SIGABRT, 1)
            lines = [line for line in server.log().splitlines() if "ready on" not in line]
            assert len(lines) == 1 and "out of memory" in lines[0], lines
            server = start()
    assert server.stop() == 0


# ------------------------------------------------------------------------------ clock

def test_a_clock_that_jumps(faults, model_file, tmp_path):
    """No deadline comes early or late, no limit is given back, no time is measured that did not pass."""
    (tmp_path / "keys").write_text("a per_minute=2\nb\n")
    flags = ("--api-key-file", str(tmp_path / "keys"), "--limit-seconds", "600", "--idle-seconds", "600",
             "--header-seconds", "600", "--log-format", "json")
    request = {"prompt": "ab", "particles": 64, "max_tokens": 200, "ignore_eos": True}
    with Server(model_file(**ENDLESS | {"context": 1024}), *TINY_FLAGS, *flags, env=faults.environment) as server:
        kept = Wire(server)
        unsent = Wire(server).send(b"GET /livez HTTP/1.1\r\n")
        kept.send(get("/livez")).reply()
        for days in (1, -700, 7000, 0):
            with Wire(server) as wire:
                wire.send(post("/v1/sample", request, "X-Api-Key: b")).head()
                faults[Faults.JUMP] = days * 86400
                time.sleep(1.2)  # a round of the watching thread
                events = [json.loads(chunk) for chunk in wire.chunks()]
            assert events[-1]["event"] == "done"
            assert all(0 <= seconds < 60 for seconds in events[-1]["timings"].values())
            statuses = [ask(server, post("/v1/score", {"prompt": "a", "completions": ["b"]},
                                         "X-Api-Key: a")).status for _ in range(3)]
            assert statuses.count(200) == (2 if days == 1 else 0)
        assert kept.send(get("/livez")).reply().status == 200
        assert unsent.send(b"Host: x\r\n\r\n").reply().status == 200
        page = ask(server, get("/metrics", "X-Api-Key: b")).body.decode()
        sums = dict(re.findall(r"^(clotho_\w+_seconds(?:_sum|_total))(?:{[^}]*})? (\S+)$", page, re.M))
        assert len(sums) >= 6 and all(0 <= float(x) < 3600 for x in sums.values()), sums
        lines = [json.loads(line) for line in server.log().splitlines()]
        assert all(0 <= line["seconds"] < 60 for line in lines if "seconds" in line)


# ------------------------------------------------------------------------------ disk

PROMPT = [0, 2]
LEARN = {"prompts": [PROMPT], "max_tokens": 4, "potential": {"type": "contains", "text": "dd"}, "particles": 16,
         "updates": 2, "seed": 1, "bounds": 0}
MIB_OF_IT = {"head": {"type": "mlp", "hidden": 768, "layers": 3}}  # 2.3 MiB


def learn(name, **fields):
    return post("/v1/twists", LEARN | {"name": name} | fields)


def guided(server, name):
    """The samples that a twist gives."""
    events = ask(server, post("/v1/sample", {"prompt": PROMPT, "max_tokens": 4, "seed": 1, "potential": LEARN["potential"],
                                             "twist": {"type": "learned", "name": name}})).events()
    return [e for e in events if e["event"] == "sample"]


def names(server):
    return [t["id"] for t in ask(server, get("/v1/twists")).json()["data"]]


@pytest.fixture
def on_disk(clotho, model_file, tmp_path):
    """on_disk(shell commands, folder) -> a server that runs after them, in a mount namespace of its own
    if they mount. They know $dir."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")

    def make(commands):
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        script = tmp_path / "clotho-on-disk"
        script.write_text(f"#!/bin/sh\nexec unshare -Urm sh -ec 'dir={folder}\n{commands}\n"
                          f"exec \"$@\"' sh {clotho} \"$@\"\n")
        script.chmod(0o755)
        return Server(model_file(**ENDLESS), *TINY_FLAGS, "--twist-dir", str(folder), program=str(script))

    return make


def seen_in(server, folder):
    """The files as the server sees them."""
    return sorted(os.listdir(f"/proc/{server.process.pid}/root{folder}"))


def test_a_full_disk(on_disk, tmp_path):
    """What cannot be saved is an error that says so; what was there stays, and nothing is left over."""
    with on_disk("mount -t tmpfs -o size=1M tmpfs $dir") as server:
        assert ask(server, learn("dd")).events()[-1]["event"] == "done"
        before = guided(server, "dd")
        for name in ("big", "dd"):
            last = ask(server, learn(name, **MIB_OF_IT)).events()[-1]
            assert last["event"] == "error" and "No space left on device" in last["error"]["message"], last
        assert names(server) == ["dd"] and guided(server, "dd") == before
        assert seen_in(server, tmp_path / "disk") == ["dd.safetensors"]
        assert ask(server, learn("small")).events()[-1]["event"] == "done"


def test_a_file_that_may_not_grow(clotho, model_file, tmp_path):
    """The same by a limit of the process (ulimit -f, systemd's LimitFSIZE), whose signal would kill it."""
    script = tmp_path / "clotho-limited"
    script.write_text(f"#!/bin/sh\nulimit -f 1024\nexec {clotho} \"$@\"\n")
    script.chmod(0o755)
    with Server(model_file(**ENDLESS), *TINY_FLAGS, "--twist-dir", str(tmp_path / "twists"),
                program=str(script)) as server:
        last = ask(server, learn("big", **MIB_OF_IT)).events()[-1]
        assert last["event"] == "error" and "File too large" in last["error"]["message"], last
        assert names(server) == [] and os.listdir(tmp_path / "twists") == []
        assert ask(server, learn("small")).events()[-1]["event"] == "done"


def test_a_disk_that_is_read_only(on_disk, serve, tmp_path):
    """Twists can be used; learning one is refused before any work is done."""
    writable = serve("--twist-dir", str(tmp_path / "made"), **ENDLESS)
    assert ask(writable, learn("dd")).events()[-1]["event"] == "done"
    wanted = guided(writable, "dd")
    with on_disk(f"mount -t tmpfs -o size=1M tmpfs $dir; cp {tmp_path}/made/* $dir; "
                 "mount -o remount,ro tmpfs $dir") as server:
        assert "none can be learned" in server.log()
        assert guided(server, "dd") == wanted
        refused = ask(server, learn("dd", updates=100000))
        assert refused.status == 400 and "Read-only file system" in refused.json()["error"]["message"]
        removed = ask(server, get("/v1/twists/dd", method="DELETE"))
        assert removed.status >= 400 and "Read-only file system" in removed.json()["error"]["message"]
        assert names(server) == ["dd"]


# ------------------------------------------------------------------------------ clients in their thousands

def open_files(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def test_ten_thousand_connections_a_second(clotho, model_file, tmp_path):
    """More than the process may open files for. Who is connected is served, with the same samples as ever,
    and so is who comes, as soon as there is room."""
    script = tmp_path / "clotho-limited"
    script.write_text(f"#!/bin/sh\nulimit -n 300\nexec {clotho} \"$@\"\n")
    script.chmod(0o755)
    request = post("/v1/sample", {"prompt": [0, 2], "particles": 4, "max_tokens": 30, "seed": 2, "stream": False})
    with Server(model_file(**ENDLESS), *TINY_FLAGS, "--twist-dir", str(tmp_path), "--log-level", "warn",
                program=str(script)) as server:
        assert "the limit of 300 open files allows 236 connections, not 1024" in server.log()
        wanted = ask(server, request).json()["samples"]
        kept, served = Wire(server), 0
        flood = subprocess.Popen([Path(clotho).with_name("clotho-flood"), str(server.port), "10000", "3", "1500"],
                                 stdout=subprocess.PIPE, text=True)
        while flood.poll() is None:
            assert kept.send(request).reply().json()["samples"] == wanted
            assert kept.send(get("/v1/twists")).reply().status == 200  # which opens a folder
            assert open_files(server) <= 300
            served += 1
        tried, completed = map(int, flood.stdout.read().split())
        assert tried > 3000 and completed > 300 and served > 3  # even under a sanitizer
        assert ask(server, request).json()["samples"] == wanted
        wait_until(lambda: metric(server, "clotho_connections") <= 3)
