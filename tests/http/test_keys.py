"""Who may call, how much at once and how often; what is logged and counted of it."""
import json
import signal
import time

import pytest
from support.server import free_port
from test_lifecycle import refused_start
from support.watch import wait_until
from wire import Wire, ask, get, post, sample


def error(reply, status, kind):
    assert reply.status == status, reply.body
    assert reply.json()["error"]["type"] == kind
    return reply.json()["error"]["message"]


def with_key(key, script="", **fields):
    """The bytes of a good /v1/sample that carries a key."""
    return post("/v1/sample", {"prompt": script, "particles": 3, "max_tokens": 4, **fields},
                f"Authorization: Bearer {key}")


@pytest.fixture
def keyed(fresh_stub, tmp_path):
    """keyed(text of the key file, *flags) -> a server that asks for keys, entered and left."""
    servers = []

    def start(text, *flags):
        (tmp_path / "keys").write_text(text)
        server = fresh_stub("--api-key-file", str(tmp_path / "keys"), *flags)
        servers.append(server.__enter__())
        return server

    yield start
    for server in servers:
        server.__exit__(None, None, None)


# ------------------------------------------------------------------------------ keys

def test_keys(stub, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# the team's\nfirst-key\n\n  second-key  \n\tthird-key name=ann\n" + "x" * 255)
    server = stub("--api-key", "flag-key", "--api-key-file", str(keys))
    for path in ("/health", "/readyz", "/livez"):
        assert ask(server, get(path)).status == 200
    closed = [get(p) for p in ("/v1/models", "/metrics", "/openapi.json", "/", "/nope")]
    for request in [*closed, sample()]:
        reply = ask(server, request)
        error(reply, 401, "authentication_error")
        assert reply.json()["error"]["param"] == "Authorization"
        assert reply.headers["www-authenticate"] == "Bearer"
    for key in ("flag-key", "first-key", "second-key", "third-key", "x" * 255):
        assert ask(server, get("/v1/models", f"Authorization: Bearer {key}")).status == 200
        assert ask(server, get("/v1/models", f"X-Api-Key: {key}")).status == 200
    for key in ("", "flag-ke", "flag-key1", "# the team's", "flag-keyflag-key", "x" * 254, "x" * 256,
                "third-key name=ann", "name=ann"):
        assert ask(server, get("/v1/models", f"Authorization: Bearer {key}")).status == 401
    assert ask(server, get("/v1/models", "Authorization: flag-key")).status == 401
    assert ask(server, get("/v1/sample", "Origin: x", method="OPTIONS")).status == 204
    for key in ("flag-key", "first-key", "third-key"):
        assert key not in server.log()


@pytest.mark.parametrize("text,says", [
    ("# nothing\n\n", "no key"),
    ("good\nSECRET concurrent=0\n", "line 2: a limit is a number from 1 to 1000000"),
    ("SECRET per_minute=x\n", "line 1: a limit"),
    ("SECRET per_minute=1e3\n", "line 1: a limit"),
    ("SECRET concurrent=99999999999999999999\n", "line 1: a limit"),
    ("SECRET SECRET\n", "line 1: a key is followed by"),
    ("SECRET nam=x\n", "line 1: a key is followed by"),
    ("SECRET name=\n", "line 1: a name"),
    ('SECRET name=a"b\n', "line 1: a name"),
    ("SECRET name=" + "a" * 65 + "\n", "line 1: a name"),
    ("SECR\u00c9T\n", "line 1: a key is plain ASCII"),
    ("SECRET" * 50 + "\n", "line 1: a key has at most"),
    ("SECRET\nSECRET name=a\n", "line 2: the key is there already"),
    ("a name=x per_minute=3\nSECRET name=x\n", "line 2: keys of one name"),
    ("".join(f"SECRET{i}\n" for i in range(1025)), "line 1025: more than 1024 keys"),
])
def test_broken_key_files(stub_program, stub_model, tmp_path, text, says):
    """The message has the place, and no key."""
    (tmp_path / "keys").write_text(text)
    code, lines = refused_start(stub_program, "serve", "--model", str(stub_model), "--port", str(free_port()),
                                "--api-key-file", str(tmp_path / "keys"))
    assert code == 1 and len(lines) == 1 and says in lines[0], lines
    assert "SECR" not in lines[0].split("/keys: ")[1]


def test_reload(keyed, tmp_path):
    """New keys count from then on, streams of old ones go on, a broken file changes nothing."""
    server = keyed("old name=ann\nboth\n")
    running = Wire(server).send(with_key("old", "us=20000", max_tokens=150))
    running.head()

    def change(text, says):
        seen = server.log().count(says)
        (tmp_path / "keys").write_text(text)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.log().count(says) > seen)

    change("new name=bob\nboth\n", "2 keys of 2 names")
    assert [ask(server, with_key(key)).status for key in ("old", "both", "new")] == [401, 200, 200]
    change("new concurrent=none\n", "the keys stay as they were: --api-key-file: ")
    assert [ask(server, with_key(key)).status for key in ("old", "both", "new")] == [401, 200, 200]
    (tmp_path / "keys").unlink()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "No such file" in server.log())
    assert ask(server, with_key("new")).status == 200
    assert json.loads(list(running.chunks())[-1])["event"] == "done"
    page = ask(server, get("/metrics", "X-Api-Key: new")).body.decode()
    assert 'key="bob"' in page and 'key="ann"' not in page


def test_reload_looks_at_the_twists(fresh_stub, tmp_path):
    folder = tmp_path / "twists"
    with fresh_stub("--twist-dir", str(folder)) as server:
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: f"SIGHUP: {folder} has 0 twists" in server.log())
        assert ask(server, sample()).status == 200


# ------------------------------------------------------------------------------ limits

def test_requests_in_progress(keyed):
    """Two at once for all keys of the name; others are not concerned, nor is what is not work."""
    server = keyed("a1 name=ann concurrent=2\na2 name=ann concurrent=2\nb1 name=bob\n")
    long = {"script": "us=20000", "max_tokens": 4000}
    wires = [Wire(server).send(with_key(key, **long)) for key in ("a1", "a2")]
    wires[0].head(), wires[1].head()
    for key in ("a1", "a2"):
        refused = ask(server, with_key(key))
        assert 'key ann may have in progress at most 2' in error(refused, 429, "rate_limit_error")
        assert refused.headers["retry-after"] == "1"
    assert ask(server, with_key("b1")).status == 200
    assert ask(server, get("/v1/models", "X-Api-Key: a1")).status == 200
    wires[0].reset()
    wait_until(lambda: ask(server, with_key("a2")).status == 200)
    wires[1].socket.close()
    page = "X-Api-Key: b1"
    wait_until(lambda: counted(server, page, 'key_requests_active{key="ann"}') == 0)
    assert counted(server, page, 'key_refused_total{key="ann",limit="concurrent"}') >= 2
    assert counted(server, page, 'key_requests_total{key="bob"}') == 1
    assert counted(server, page, 'key_tokens_total{key="bob"}') == 3 * 4


def counted(server, header, name):
    page = ask(server, get("/metrics", header)).body.decode()
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith("clotho_" + name + " "))


def test_requests_a_minute(keyed):
    """So many at once, then evenly; Retry-After is when the next one is let in."""
    server = keyed("a name=ann per_minute=30\nb\n")
    with Wire(server) as wire:
        statuses = [wire.send(with_key("a", stream=False)).reply().status for _ in range(30)]
        refused = wire.send(with_key("a")).reply()
        begun = time.monotonic()
        assert statuses == [200] * 30
        assert 'key ann may make each minute at most 30' in error(refused, 429, "rate_limit_error")
        seconds = int(refused.headers["retry-after"])
        assert 1 <= seconds <= 2
        assert ask(server, with_key("b")).status == 200
        time.sleep(max(0, begun + seconds - time.monotonic()))
        assert wire.send(with_key("a")).reply().status == 200
    assert counted(server, "X-Api-Key: b", 'key_refused_total{key="ann",limit="per_minute"}') == 1


def test_a_limit_survives_a_reload(keyed, tmp_path):
    """Reading the file again gives nobody a fresh start; a new limit holds at once."""
    server = keyed("a per_minute=1\n")
    assert ask(server, with_key("a")).status == 200
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "1 keys of 1 names" in server.log())
    assert ask(server, with_key("a")).status == 429
    (tmp_path / "keys").write_text("a per_minute=1000\n")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: ask(server, with_key("a")).status == 200)


def test_drain_with_keys(keyed):
    """SIGTERM lets what runs finish, and gives each key's places back."""
    server = keyed("a name=ann concurrent=3\n", "--drain-seconds", "20")
    wires = [Wire(server).send(with_key("a", "us=20000", max_tokens=60)) for _ in range(3)]
    for wire in wires:
        wire.head()
    server.process.send_signal(signal.SIGTERM)
    for wire in wires:
        assert json.loads(list(wire.chunks())[-1])["event"] == "done"
    assert server.process.wait(20) == 0


# ------------------------------------------------------------------------------ logs

def entries(server, wanted):
    """The log's JSON lines that have a member."""
    return [e for e in map(json.loads, server.log().splitlines()) if wanted in e]


def test_json_log(keyed):
    server = keyed("k-secret name=ann\n", "--log-format", "json")
    ask(server, with_key("k-secret", 'a "secret"', seed=1))
    wait_until(lambda: any(e["path"] == "/v1/sample" for e in entries(server, "path")))
    done = next(e for e in entries(server, "path") if e["path"] == "/v1/sample")
    assert {k: done[k] for k in ("level", "key", "method", "status", "particles", "tokens", "end")} == {
        "level": "info", "key": "ann", "method": "POST", "status": 200, "particles": 3, "tokens": 12,
        "end": "done"}
    assert done["queue_seconds"] >= 0 and 0 < done["seconds"] < 60 and done["prompt_tokens"] > 0
    wait_until(lambda: any(e["message"].startswith("ready on http://") for e in entries(server, "message")))
    assert "secret" not in server.log()


def test_logfmt_log_with_prompts(keyed):
    server = keyed("k-secret name=ann\n", "--log-format", "logfmt", "--log-prompts")
    ask(server, with_key("k-secret", 'say "\u00e4"\n=x'))
    wait_until(lambda: "end=done" in server.log())
    lines = server.log().splitlines()
    assert all(line.startswith("time=20") and " level=" in line for line in lines)
    asked = next(line for line in lines if " body=" in line)
    body = json.loads(asked.split(" body=")[1])
    assert json.loads(body)["prompt"] == 'say "\u00e4"\n=x'
    assert " key=ann " in asked and "k-secret" not in server.log()
