"""POST /v1/bounds over the stub: its events, its answer, and clients that leave. The stub's log Z is
-2 and its bounds are off by 1/K."""
import json
import signal
import time

import pytest
from support.watch import metric, wait_until
from wire import Wire, ask, get, is_idle, post

POTENTIAL = {"type": "contains", "text": "a"}
BODY = {"particles": 4, "max_tokens": 4, "repeats": 3, "seed": 1, "potential": POTENTIAL,
        "targets": {"source": "rejection", "max_draws": 100}, "resampling": {"ess_threshold": 0.5},
        "twist": {"type": "potential", "every": 2}}


@pytest.fixture(scope="module")
def server(stub):
    return stub()


def bounds(script="", *headers, **fields):
    return post("/v1/bounds", BODY | {"prompt": script} | fields, *headers)


def test_events(server):
    reply = ask(server, bounds())
    assert reply.headers["content-type"] == "application/x-ndjson"
    events = reply.events()
    assert [e["event"] for e in events] == ["start"] + ["bound"] * 6 + ["done"]
    assert [e["kind"] for e in events[1:-1]] == ["lower", "upper"] * 3
    assert [e["log_z"] for e in events[1:3]] == [-2.5, -1.5]  # twice 1/K: the base proposal
    done = events[-1]
    assert done["lower"] == {"mean": -2.5, "stderr": 0.05, "n": 3}
    assert done["upper"] == {"mean": -1.5, "stderr": 0.05, "n": 3}
    assert done["gap"] == 1


def test_unknown_upper_bound_and_dead_runs_are_null(server):
    events = ask(server, bounds("dead=5", targets=None)).events()
    assert [e["kind"] for e in events if e["event"] == "bound"] == ["lower"] * 3
    assert all(e["log_z"] is None for e in events if e["event"] == "bound")
    assert events[-1]["lower"]["mean"] is None and events[-1]["gap"] is None


def test_sse(server):
    reply = ask(server, bounds("", "Accept: text/event-stream"))
    assert reply.headers["content-type"] == "text/event-stream"
    parts = reply.body.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    assert json.loads(parts[-3][6:])["event"] == "done"


def test_whole_says_what_the_stream_says(server):
    whole = ask(server, bounds(stream=False)).json()
    done = ask(server, bounds()).events()[-1]
    for name in ("lower", "upper", "gap"):
        assert whole[name] == done[name]


@pytest.mark.parametrize("fields,param", [
    ({"particles": 0}, "particles"), ({"repeats": 0}, "repeats"), ({"targets": 1}, "targets"),
    ({"nonsense": 1}, "nonsense"),
])
def test_refusals(server, fields, param):
    reply = ask(server, bounds(**fields))
    assert reply.status == 400 and reply.json()["error"]["param"] == param


def test_counted(server):
    route = 'clotho_requests_total{endpoint="/v1/bounds",method="POST",code="200"}'
    ask(server, bounds())
    runs, requests = metric(server, "clotho_bounds_runs_total"), metric(server, route)
    ask(server, bounds())
    wait_until(lambda: metric(server, route) == requests + 1)
    assert metric(server, "clotho_bounds_runs_total") == runs + 3


def test_client_leaves(server):
    before = metric(server, "clotho_jobs_cancelled_total")
    wires = [Wire(server).send(bounds("us=10000", repeats=1000, stream=stream))
             for stream in (True, True, False)]
    wait_until(lambda: metric(server, "clotho_requests_running") == 3)
    wires[0].reset()
    wires[1].socket.close()
    wires[2].socket.close()
    wait_until(lambda: metric(server, "clotho_jobs_cancelled_total") == before + 3)
    wait_until(lambda: is_idle(server))


def test_drain_has_a_deadline(fresh_stub):
    with fresh_stub("--drain-seconds", "1") as server:
        wire = Wire(server).send(bounds("us=10000", repeats=1000))
        wait_until(lambda: metric(server, "clotho_requests_running") == 1)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        last = wire.reply().events()[-1]
        assert last["event"] == "error" and last["error"]["type"] == "overloaded_error"
        assert server.process.wait(10) == 0 and time.monotonic() - begun < 5
