"""How much a client may take of the server: time and memory. How often and how much at once it may
ask is in test_keys.py, how large a request may be in test_routes.py."""
import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.watch import metric, wait_until
from wire import Wire, ask, is_idle, is_well, post, sample

SSE = "Accept: text/event-stream"
MIB = 1 << 20


def resident(server):
    """Bytes of memory that the server has now; 0 under a sanitizer, which gives nothing back."""
    if not Path(server.program).with_name("libclotho-faults.so").exists():
        return 0
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


# ------------------------------------------------------------------------------ time

@pytest.fixture(scope="module")
def hasty(stub):
    return stub("--limit-seconds", "1", "--idle-seconds", "1")


@pytest.mark.parametrize("script", ["us=100000", "quiet=60000"])
def test_a_request_that_takes_too_long_ends_with_an_error(hasty, script):
    request = {"prompt": script, "particles": 2, "max_tokens": 4000}
    wires = [Wire(hasty).send(post("/v1/sample", request)),
             Wire(hasty).send(post("/v1/sample", request, SSE)),
             Wire(hasty).send(post("/v1/sample", request | {"stream": False}))]
    lines, sse, whole = (wire.reply() for wire in wires)
    assert lines.events()[-1]["event"] == "error"
    parts = sse.body.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    for error in (lines.events()[-1]["error"], json.loads(parts[-3][6:])["error"], whole.json()["error"]):
        assert error["type"] == "invalid_request_error" and "limit of 1 s" in error["message"]
    assert whole.status == 400
    wait_until(lambda: is_idle(hasty))
    assert "end=late" in hasty.log()


def test_a_request_in_time_is_left_alone(hasty):
    assert ask(hasty, sample("us=10000", max_tokens=10)).events()[-1]["event"] == "done"


def trickle(wire, begun, stop):
    """Read a little now and then until told to stop, then all that still comes: how much it was."""
    n = 0
    with contextlib.suppress(ConnectionResetError):
        while data := wire.socket.recv(65536 if stop.is_set() else 3000):
            n += len(data)
            begun.set()
            if not stop.is_set():
                time.sleep(0.1)
    return n


def test_who_trickles_an_answer_is_cut_off(stub):
    """What it reads keeps it from being idle."""
    server, stop, size = stub("--idle-seconds", "4"), threading.Event(), 400000
    forms = [sample(f"text={size // 2}", particles=2, max_tokens=1, stream=stream) for stream in (True, False)]
    wires = [Wire(server, receive_buffer=4096).send(form)
             for form in (*forms, post("/detokenize", {"tokens": [100] * size}))]
    with ThreadPoolExecutor(len(wires)) as pool:
        begun = [threading.Event() for _ in wires]
        read = [pool.submit(trickle, *both, stop) for both in zip(wires, begun)]
        assert all(b.wait(30) for b in begun)
        wait_until(lambda: is_idle(server), 30)
        stop.set()
        assert max(r.result() for r in read) < size
    is_well(server)


# ------------------------------------------------------------------------------ memory

def test_bodies_do_not_fill_the_memory(fresh_stub):
    """Requests that stop right before their end hold what they sent."""
    with fresh_stub("--client-memory", "32M") as server:
        before = resident(server)
        body = b" " * (6 * MIB)
        wires = [Wire(server).send(post("/tokenize", body)[:-1]) for _ in range(20)]
        wait_until(lambda: metric(server, "clotho_client_memory_bytes") >= 6 * MIB)
        is_well(server)  # and whoever holds little is served
        grown = resident(server) - before
        answers = [wire.send(b" ").reply() for wire in wires]
        assert [r.status for r in answers].count(429) >= 17
        refused = next(r for r in answers if r.status == 429)
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) > 0
        assert grown < 48 * MIB
        assert metric(server, "clotho_client_memory_bytes") < MIB


def test_answers_do_not_fill_the_memory(fresh_stub):
    """Nobody reads: each answer alone is within its limits."""
    with fresh_stub("--client-memory", "32M") as server:
        before = resident(server)
        wires = [Wire(server, receive_buffer=4096).send(
            sample("text=1000000", particles=10, max_tokens=1, stream=i % 2 == 0)) for i in range(20)]
        wait_until(lambda: metric(server, "clotho_jobs_done_total")
                   + metric(server, "clotho_jobs_cancelled_total") == len(wires))
        assert resident(server) - before < 64 * MIB
        is_well(server)
        for wire in wires:
            wire.socket.close()
        wait_until(lambda: is_idle(server))
        assert metric(server, 'clotho_cancelled_total{reason="full"}') >= 10
        assert metric(server, "clotho_client_memory_bytes") < MIB
