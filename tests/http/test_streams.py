"""Streams: their form, and clients that leave, dawdle or shut one side."""
import json
import socket
import threading
import time

import pytest
from support.watch import metric, wait_until
from wire import Wire, ask, get, is_idle, is_well, post, sample


@pytest.fixture(scope="module")
def server(stub):
    return stub("--max-connections", "2000")


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    wait_until(lambda: is_idle(server))
    is_well(server)


# ------------------------------------------------------------------------------ form

def test_each_event_is_a_line_and_a_chunk(server):
    reply = ask(server, sample("us=2000", particles=3, max_tokens=20))
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    kinds = [json.loads(chunk)["event"] for chunk in reply.chunks]
    assert all(chunk.endswith(b"\n") and chunk.count(b"\n") == 1 for chunk in reply.chunks)
    assert kinds == (["start"] + ["step"] * 8 + ["resample"] + ["step"] * 8 + ["resample"]
                     + ["step"] * 4 + ["sample"] * 3 + ["done"])


def test_events_come_when_they_happen(server):
    with Wire(server) as wire:
        wire.send(sample("us=100000", max_tokens=10)).head()
        times = [time.monotonic() for _ in wire.chunks()]
    assert times[-1] - times[0] > 0.9
    gaps = [b - a for a, b in zip(times[:10], times[1:11])]
    assert sorted(gaps)[5] == pytest.approx(0.1, abs=0.03)


def test_sse(server):
    request = sample("us=1000", particles=2, max_tokens=3, seed=1)
    request = request.replace(b"Host: x", b"Host: x\r\nAccept: text/event-stream")
    reply = ask(server, request)
    assert reply.headers["content-type"] == "text/event-stream"
    events = reply.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(e.startswith("data: ") for e in events[:-1])
    assert json.loads(events[-3][6:])["event"] == "done"


def without_times(event):
    return {k: v for k, v in event.items() if k not in ("event", "id", "timings")}


def test_whole_is_the_same_as_the_stream(server):
    fields = {"particles": 5, "max_tokens": 17, "seed": 7}
    events = ask(server, sample("us=10", **fields)).events()
    whole = ask(server, sample("us=10", **fields, stream=False))
    assert int(whole.headers["content-length"]) == len(whole.body)
    whole = without_times(whole.json())
    for name, kind in (("steps", "step"), ("resamples", "resample"), ("samples", "sample")):
        assert whole.pop(name) == [without_times(e) for e in events if e["event"] == kind]
    assert whole == without_times(events[0]) | without_times(events[-1])


def test_large_events(server):
    """A text far larger than libmicrohttpd's buffer spans chunks and is one line all the same."""
    events = ask(server, sample("text=1000000", particles=3, max_tokens=2)).events()
    assert [len(e["text"]) for e in events if e["event"] == "sample"] == [1000002] * 3
    whole = ask(server, sample("text=1000000", particles=3, max_tokens=2, stream=False)).json()
    assert [len(s["text"]) for s in whole["samples"]] == [1000002] * 3


def test_http_1_0_gets_a_stream_without_chunks(server):
    request = post("/v1/sample", {"prompt": "us=1000", "max_tokens": 3, "particles": 1},
                   version="1.0")
    with Wire(server) as wire:
        reply = wire.send(request).reply()
    assert "transfer-encoding" not in reply.headers
    assert reply.events()[-1]["event"] == "done"


def test_keep_alive_and_pipelining(server):
    with Wire(server) as wire:
        wire.send(sample(max_tokens=3) + get("/livez") + sample(stream=False) + get("/nope")
                  + sample(max_tokens=2))
        assert wire.reply().events()[-1]["event"] == "done"
        assert wire.reply().json() == {"status": "ok"}
        assert len(wire.reply().json()["samples"]) == 1
        assert wire.reply().status == 404
        assert wire.reply().events()[-1]["event"] == "done"


def test_chunked_upload(server):
    body = json.dumps({"prompt": "us=10", "max_tokens": 2, "particles": 1}).encode()
    chunks = b"".join(b"1\r\n" + body[i:i + 1] + b"\r\n" for i in range(len(body)))
    request = (b"POST /v1/sample HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
               + b"0\r\n\r\n")
    assert ask(server, request).events()[-1]["event"] == "done"


# ------------------------------------------------------------------------------ ends

def test_error_event_ends_a_stream(server):
    events = ask(server, sample("fail=5", max_tokens=9)).events()
    assert [e["event"] for e in events] == ["start"] + ["step"] * 4 + ["error"]
    assert events[-1]["error"]["type"] == "api_error"


def test_error_before_a_whole_answer_is_a_status(server):
    reply = ask(server, sample("fail=5", max_tokens=9, stream=False))
    assert reply.status == 500 and reply.json()["error"]["type"] == "api_error"


def test_a_stream_that_breaks_off_has_no_end(server):
    with Wire(server) as wire:
        wire.send(sample("vanish=5", max_tokens=9)).head()
        with pytest.raises(EOFError):
            list(wire.chunks())
    reply = ask(server, sample("vanish=5", max_tokens=9, stream=False))
    assert reply.status == 500


def test_ping_breaks_the_silence(server):
    with Wire(server) as lines, Wire(server) as sse, Wire(server) as whole:
        request = sample("quiet=17000", max_tokens=1)
        begun = time.monotonic()
        lines.send(request)
        sse.send(request.replace(b"Host: x", b"Host: x\r\nAccept: text/event-stream"))
        whole.send(sample("quiet=17000", max_tokens=1, stream=False))
        lines.head()
        sse.head()
        assert json.loads(lines.chunk()) == {"event": "ping"}
        assert sse.chunk() == b": ping\n\n"
        assert 14.5 < time.monotonic() - begun < 16.9
        assert json.loads(list(lines.chunks())[-1])["event"] == "done"
        assert list(sse.chunks())[-1].endswith(b"data: [DONE]\n\n")
        assert whole.reply().status == 200


# ------------------------------------------------------------------------------ clients that leave

def cancelled(server):
    return metric(server, "clotho_jobs_cancelled_total")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("script", ["us=1000", "us=100000", "quiet=60000"])
@pytest.mark.parametrize("stream", [True, False])
def test_client_leaves(server, how, script, stream):
    before = cancelled(server)
    wire = Wire(server).send(sample(script, max_tokens=4000, stream=stream))
    time.sleep(0.1)
    wire.reset() if how == "reset" else wire.socket.close()
    begun = time.monotonic()
    wait_until(lambda: cancelled(server) == before + 1, 10)
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", ["us=100000", "quiet=3000"])
def test_half_closed_client_gets_its_answer(server, script, stream):
    before = cancelled(server)
    with Wire(server) as wire:
        wire.send(sample(script, max_tokens=30, stream=stream)).half_close()
        reply = wire.reply()
    if stream:
        assert reply.events()[-1]["event"] == "done"
    else:
        assert len(reply.json()["samples"]) == 1
    assert cancelled(server) == before


def test_slow_reader_is_cut_off(stub):
    server = stub("--stream-buffer", "64K")
    before = metric(server, 'clotho_cancelled_total{reason="slow"}')
    with Wire(server, receive_buffer=4096) as wire:
        wire.send(sample("us=0", particles=1000, max_tokens=4000))
        wait_until(lambda: metric(server, 'clotho_cancelled_total{reason="slow"}') == before + 1, 30)
        wait_until(lambda: is_idle(server))
        with pytest.raises((EOFError, ConnectionResetError)):
            wire.head()
            list(wire.chunks())
    assert "end=slow" in server.log()
    is_well(server)


def test_slow_reader_gets_the_answer_itself(stub):
    """Only progress can pile up too high: the samples come in one burst, however large."""
    server = stub("--stream-buffer", "64K")
    with Wire(server, receive_buffer=4096) as wire:
        wire.send(sample("text=1000", particles=1000, max_tokens=1)).head()
        time.sleep(1)
        kinds = [json.loads(line)["event"] for line in b"".join(wire.chunks()).splitlines()]
    assert kinds.count("sample") == 1000 and kinds[-1] == "done"


def test_thousand_clients_leave_mid_stream(server):
    before, wires = cancelled(server), []
    for i in range(1000):
        wire = Wire(server)
        wires.append(wire.send(sample("us=20000", particles=4, max_tokens=4000, stream=i % 4 != 0)))
    wait_until(lambda: metric(server, "clotho_requests_running") == 1000)
    for i, wire in enumerate(wires):
        if i % 3 == 0:
            wire.reset()
        else:
            wire.socket.close()
    wait_until(lambda: cancelled(server) == before + 1000, 30)


def test_many_streams_at_once_are_whole(server):
    """64 streams at a time, each complete and in order."""
    failures = []

    def one(i):
        try:
            events = ask(server, sample("us=500", particles=i % 5 + 1, max_tokens=200)).events()
            assert [e["step"] for e in events if e["event"] == "step"] == [*range(1, 201)]
            assert events[-1]["event"] == "done"
        except Exception as e:  # noqa: BLE001: threads report to the test
            failures.append((i, e))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(64)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_leaving_does_not_disturb_others(server):
    with Wire(server) as stays:
        stays.send(sample("us=20000", max_tokens=100))
        for _ in range(50):
            Wire(server).send(sample("us=5000", max_tokens=4000)).reset()
        assert [e["step"] for e in stays.reply().events() if e["event"] == "step"] == [*range(1, 101)]


def test_urgent_data_and_garbage_behind_a_request(server):
    with Wire(server) as wire:
        wire.send(sample("us=1000", max_tokens=50) + b"\xff\x00 garbage\r\n\r\n")
        assert wire.reply().events()[-1]["event"] == "done"
        assert wire.is_closed(5)
    with Wire(server) as wire:
        wire.send(sample("us=10000", max_tokens=50))
        wire.socket.send(b"!", socket.MSG_OOB)
        wire.is_closed(5)
