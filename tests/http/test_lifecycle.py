"""Starting, loading, overload, draining, failing."""
import json
import re
import signal
import subprocess
import threading
import time

import pytest
from support.server import environment, free_port
from support.watch import metric, wait_until
from wire import Wire, ask, get, is_well, sample


def refused_start(program, *arguments, env=None):
    """(exit code, what it said) of a server that should not start."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30,
                          env=environment(env))
    return done.returncode, (done.stdout + done.stderr).splitlines()


# ------------------------------------------------------------------------------ start

def test_ready_line(stub):
    server = stub()
    line = rf"^clotho: ready on http://127\.0\.0\.1:{server.port} \(stub, \d+\.\d s\)$"
    wait_until(lambda: re.search(line, server.log(), re.M))


@pytest.mark.parametrize("flags,says", [
    (["--model", "/no/such/file.gguf"], "/no/such/file.gguf"),
    (["--model", "{model}", "--nonsense", "1"], "--nonsense"),
    (["--model", "{model}", "--port", "x"], "--port"),
    (["--model", "{model}", "--port", "99999"], "--port"),
    (["--model", "{model}", "--host", "no.such.host.invalid"], "--host"),
    (["--model", "{model}", "--host", "192.0.2.1"], "192.0.2.1"),
    (["--model", "{model}", "--api-key-file", "/no/such/keys"], "/no/such/keys"),
    ([], "model"),
])
def test_cannot_start(stub_program, stub_model, flags, says):
    flags = [f.format(model=stub_model) for f in flags]
    if "--port" not in flags:
        flags += ["--port", str(free_port())]
    code, lines = refused_start(stub_program, "serve", *flags)
    assert code != 0
    assert len(lines) == 1 and says in lines[0], lines


def test_broken_file(stub_program, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 100)
    code, lines = refused_start(stub_program, "serve", "--model", str(broken), "--port",
                                str(free_port()))
    assert code == 1 and len(lines) == 1 and "broken.gguf" in lines[0], lines


def test_taken_port_is_known_before_the_model_is_loaded(stub, stub_program, stub_model):
    begun = time.monotonic()
    code, lines = refused_start(stub_program, "serve", "--model", str(stub_model), "--port",
                                str(stub().port), env={"STUB_LOAD_MS": "5000"})
    assert code == 1 and len(lines) == 1 and "Address already in use" in lines[0]
    assert time.monotonic() - begun < 3


def test_load_that_fails(stub_program, stub_model):
    code, lines = refused_start(stub_program, "serve", "--model", str(stub_model), "--port",
                                str(free_port()), env={"STUB_LOAD_FAILS": "1"})
    assert code == 1 and lines == ["clotho: the stub was told to fail"]


def test_while_loading(fresh_stub):
    with fresh_stub(wait=False, STUB_LOAD_MS="2500") as server:
        wait_until(lambda: listens(server))
        assert ask(server, get("/livez")).status == 200
        assert ask(server, get("/metrics")).status == 200
        for request in (get("/health"), get("/readyz"), get("/v1/models"), sample()):
            reply = ask(server, request)
            assert reply.status == 503 and reply.json()["error"]["type"] == "overloaded_error"
            assert int(reply.headers["retry-after"]) > 0
        wait_until(lambda: ask(server, get("/readyz")).status == 200)
        is_well(server)


def listens(server):
    try:
        Wire(server).socket.close()
        return True
    except OSError:
        return False


def test_stopped_while_loading(fresh_stub):
    with fresh_stub(wait=False, STUB_LOAD_MS="1500") as server:
        wait_until(lambda: listens(server))
        assert server.stop() == 0


# ------------------------------------------------------------------------------ overload

def test_full_queue(fresh_stub):
    with fresh_stub("--max-queue", "3", STUB_RUNNING="2") as server:
        wires = [Wire(server).send(sample("us=50000", max_tokens=40)) for _ in range(5)]
        wait_until(lambda: metric(server, "clotho_requests_waiting") == 3)
        for stream in (True, False):
            reply = ask(server, sample(stream=stream))
            assert reply.status == 429
            assert reply.json()["error"]["type"] == "rate_limit_error"
            assert int(reply.headers["retry-after"]) > 0
        for wire in wires:
            assert wire.reply().events()[-1]["event"] == "done"
        is_well(server)


def test_connection_limit(fresh_stub):
    """Those beyond it wait, and are served when others go."""
    with fresh_stub("--max-connections", "8") as server:
        server.client().close()
        wires = [Wire(server).send(sample("us=20000", max_tokens=50)) for _ in range(20)]
        for wire in wires:
            assert wire.reply().events()[-1]["event"] == "done"
            wire.socket.close()


# ------------------------------------------------------------------------------ drain

def test_drain_lets_running_requests_finish(fresh_stub):
    with fresh_stub("--drain-seconds", "20") as server:
        kept = Wire(server)
        kept.send(get("/readyz")).reply()
        wires = [Wire(server).send(sample("us=20000", max_tokens=100, stream=i % 2 == 0))
                 for i in range(40)]
        wait_until(lambda: metric(server, "clotho_requests_running") == 40)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(server))
        refused = kept.send(get("/readyz")).reply()
        assert refused.status == 503 and "shutting down" in refused.json()["error"]["message"]
        assert kept.send(sample()).reply().status == 503
        for i, wire in enumerate(wires):
            reply = wire.reply()
            assert reply.status == 200
            assert (reply.events()[-1]["event"] == "done") if i % 2 == 0 else reply.json()["samples"]
        assert server.process.wait(10) == 0


def test_drain_has_a_deadline(fresh_stub):
    with fresh_stub("--drain-seconds", "1") as server:
        busy = Wire(server).send(sample("us=10000", max_tokens=4000))
        quiet = Wire(server).send(sample("quiet=60000"))
        whole = Wire(server).send(sample("quiet=60000", stream=False))
        wait_until(lambda: metric(server, "clotho_requests_running") == 3)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for wire in (busy, quiet):
            last = wire.reply().events()[-1]
            assert last["event"] == "error" and last["error"]["type"] == "overloaded_error"
        assert whole.reply().status == 503
        assert server.process.wait(10) == 0
        assert time.monotonic() - begun < 5


def test_drain_under_load(fresh_stub):
    """SIGTERM while clients come, go and dawdle."""
    with fresh_stub("--drain-seconds", "2", "--max-connections", "500") as server:
        stop = threading.Event()

        def client(i):
            while not stop.is_set():
                try:
                    wire = Wire(server, timeout=5)
                    wire.send(sample(f"us={i * 300}", particles=8, max_tokens=300))
                    if i % 4 == 0:
                        wire.reset()
                    elif i % 4 == 1:
                        wire.head()
                        time.sleep(0.05)
                        wire.socket.close()
                    else:
                        wire.reply()
                except (OSError, EOFError, ValueError, IndexError):
                    pass

        threads = [threading.Thread(target=client, args=(i,)) for i in range(32)]
        for t in threads:
            t.start()
        time.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(20)
        stop.set()
        for t in threads:
            t.join()
        assert code == 0


def test_second_signal_exits_at_once(fresh_stub):
    server = fresh_stub("--drain-seconds", "60").__enter__()
    wire = Wire(server).send(sample("quiet=60000"))
    wait_until(lambda: metric(server, "clotho_requests_running") == 1)
    server.process.send_signal(signal.SIGINT)
    wait_until(lambda: not listens(server))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(2) != 0
    wire.socket.close()


# ------------------------------------------------------------------------------ failure

def test_failed_engine_ends_the_process(fresh_stub):
    server = fresh_stub().__enter__()
    with Wire(server) as running, Wire(server) as kept:
        kept.send(get("/readyz")).reply()
        running.send(sample("us=1000", max_tokens=4000))
        events = ask(server, sample("us=1000 die=20", max_tokens=100)).events()
        assert events[-1]["event"] == "error"
        assert running.reply().events()[-1]["event"] == "error"
        assert kept.send(get("/readyz")).reply().status == 503
    assert server.process.wait(10) == 1
    assert "the device failed" in server.log()
