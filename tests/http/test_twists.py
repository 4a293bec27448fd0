"""Learned twists over the stub: /v1/twists and what lies in the folder. The stub learns in no time,
and saves a twist of zeros."""
import os
import signal
import time

import pytest
from support.watch import metric, wait_until
from wire import Wire, ask, get, is_idle, post

from support.server import free_port
from test_lifecycle import refused_start
from test_routes import assert_error

BODY = {"particles": 4, "max_tokens": 4, "seed": 1, "updates": 5, "method": "ctl", "bounds": 2,
        "potential": {"type": "contains", "text": "a"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("twists")


@pytest.fixture(scope="module")
def server(stub, folder):
    return stub("--twist-dir", str(folder))


def learn(name="one", script="", *headers, **fields):
    return post("/v1/twists", BODY | {"name": name, "prompts": [script]} | fields, *headers)


def names(server):
    return [t["id"] for t in ask(server, get("/v1/twists")).json()["data"]]


# ------------------------------------------------------------------------------ learning

def test_events(server, folder):
    reply = ask(server, learn("events"))
    assert reply.headers["content-type"] == "application/x-ndjson"
    events = reply.events()
    assert [e["event"] for e in events] == ["start", "update", "update", "bound", "update", "update",
                                            "bound", "update", "done"]
    assert [e["update"] for e in events if e["event"] == "update"] == [1, 2, 3, 4, 5]
    assert events[1]["loss"] == 1 and events[1]["log_z"] == -3 and events[1]["ess"] == 3
    assert events[-1]["name"] == "events"
    assert (folder / "events.safetensors").exists()


def test_sse(server):
    reply = ask(server, learn("sse", "", "Accept: text/event-stream"))
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.body.endswith(b"data: [DONE]\n\n")


def test_whole(server):
    whole = ask(server, learn("whole", stream=False)).json()
    assert whole["updates"] == 5 and whole["log_z"] == -2
    assert "whole" in names(server)


def test_client_leaves(server, folder):
    before = metric(server, "clotho_jobs_cancelled_total")
    wires = [Wire(server).send(learn(f"left{i}", "us=10000", updates=10000, stream=i > 0))
             for i in range(3)]
    wait_until(lambda: metric(server, "clotho_requests_running") == 3)
    wires[0].socket.close()
    wires[1].socket.close()
    wires[2].reset()
    wait_until(lambda: metric(server, "clotho_jobs_cancelled_total") == before + 3)
    wait_until(lambda: is_idle(server))
    assert not list(folder.glob("left*"))


@pytest.mark.parametrize("bounds", [0, 1], ids=["updates", "bounds, too"])
def test_events_of_a_client_that_does_not_read_do_not_pile_up(fresh_stub, tmp_path, bounds):
    with fresh_stub("--twist-dir", str(tmp_path), "--stream-buffer", "64K") as server:
        with Wire(server, receive_buffer=4096) as wire:
            wire.send(learn("slow", "us=0", updates=1000000, bounds=bounds))
            wait_until(lambda: metric(server, 'clotho_cancelled_total{reason="slow"}') == 1)
        wait_until(lambda: is_idle(server))
        assert not list(tmp_path.iterdir())


def test_error_event_ends_a_stream(server):
    events = ask(server, learn("failed", "fail=3")).events()
    assert [e["event"] for e in events[-2:]] == ["bound", "error"]
    reply = ask(server, learn("failed", "fail=3", stream=False))
    assert reply.status == 500
    assert "failed" not in names(server)


def test_drain_lets_learning_finish(fresh_stub, tmp_path):
    with fresh_stub("--twist-dir", str(tmp_path), "--drain-seconds", "20") as server:
        wire = Wire(server).send(learn("done", "us=20000", updates=50))
        wait_until(lambda: metric(server, "clotho_requests_running") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert wire.reply().events()[-1]["event"] == "done"
        assert server.process.wait(10) == 0
    assert (tmp_path / "done.safetensors").exists()


def test_drain_has_a_deadline(fresh_stub, tmp_path):
    with fresh_stub("--twist-dir", str(tmp_path), "--drain-seconds", "1") as server:
        wire = Wire(server).send(learn("cut", "us=10000", updates=10000))
        wait_until(lambda: metric(server, "clotho_requests_running") == 1)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        last = wire.reply().events()[-1]
        assert last["event"] == "error" and last["error"]["type"] == "overloaded_error"
        assert server.process.wait(10) == 0 and time.monotonic() - begun < 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fields,param", [
    ({"name": "../up"}, "name"), ({"name": ""}, "name"), ({"name": "a" * 65}, "name"),
    ({"name": ".hidden"}, "name"), ({"name": 1}, "name"), ({"name": None}, "name"),
    ({"method": "magic"}, "method"), ({"updates": 0}, "updates"), ({"particles": 1}, "particles"),
    ({"head": {"type": "linear", "layers": 2}}, "head.layers"),
    ({"potential": None}, "potential"), ({"nonsense": 1}, "nonsense"),
])
def test_refusals(server, fields, param):
    assert_error(ask(server, learn(**({"name": "refused"} | fields))), 400, param)


def test_counted(server):
    route = 'clotho_requests_total{endpoint="/v1/twists",method="%s",code="200"}'
    ask(server, learn("counted"))
    names(server)
    before = [metric(server, m) for m in ("clotho_learning_updates_total", route % "POST",
                                          route % "GET")]
    ask(server, learn("counted"))
    wait_until(lambda: metric(server, route % "POST") == before[1] + 1)
    assert metric(server, "clotho_learning_updates_total") == before[0] + 5
    assert metric(server, route % "GET") == before[2]


# ------------------------------------------------------------------------------ list, show, remove

def test_life_of_a_twist(server, folder):
    assert "life" not in names(server)
    ask(server, learn("life"))
    assert names(server) == sorted(names(server)) and "life" in names(server)
    shown = ask(server, get("/v1/twists/life")).json()
    assert shown["id"] == "life" and shown["method"] == "ctl"
    assert shown["request"]["prompts"] == [""] and shown["request"]["updates"] == 5
    removed = ask(server, get("/v1/twists/life", method="DELETE"))
    assert removed.status == 200 and removed.json()["deleted"] is True
    assert "life" not in names(server) and not (folder / "life.safetensors").exists()
    for method in ("GET", "DELETE"):
        reply = ask(server, get("/v1/twists/life", method=method))
        assert reply.status == 404 and "life" in reply.json()["error"]["message"]


def test_broken_files_are_not_listed(server, folder):
    ask(server, learn("good"))
    for name, data in (("broken", b"x"), ("empty", b""), (".hidden", b"x"), ("bad name", b"x")):
        (folder / f"{name}.safetensors").write_bytes(data)
    (folder / "folder.safetensors").mkdir()
    listed = names(server)
    assert "good" in listed
    assert not {"broken", "empty", ".hidden", "bad name", "folder"} & set(listed)
    assert ask(server, get("/v1/twists/broken")).status == 500
    assert ask(server, get("/v1/twists/broken", method="DELETE")).status == 200  # to be rid of it


NO_NAMES = ["", "..", ".", "%2e%2e", "%2E", "..%2fx", "a%2fb", "a/b", "a%00b", "a%0ab", "%ff", "a%20b",
            "a" * 65, "a" * 3000, "-a", "_a", ".a", "a%25", "a*", "%", "%zz", "*"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", NO_NAMES, ids=lambda n: n[:12] or "empty")
def test_what_is_no_name(server, folder, name, method):
    ask(server, learn("a"))
    ask(server, learn("b"))
    reply = ask(server, get(f"/v1/twists/{name}", method=method))
    assert reply.status == 404 and reply.json()["error"]["type"] == "not_found_error"
    assert {"a", "b"} <= set(names(server))


def test_a_long_name_is_not_cut_to_another(server):
    ask(server, learn("a" * 64))
    assert ask(server, get("/v1/twists/" + "a" * 64)).status == 200
    assert ask(server, get("/v1/twists/" + "a" * 65, method="DELETE")).status == 404
    assert "a" * 64 in names(server)


def test_percent_encoded_names(server):
    ask(server, learn("per-cent_1.x"))
    shown = ask(server, get("/v1/twists/per%2Dcent%5F1%2ex?query=1"))
    assert shown.status == 200 and shown.json()["id"] == "per-cent_1.x"


def test_head(server):
    ask(server, learn("head"))
    for path in ("/v1/twists", "/v1/twists/head"):
        with Wire(server) as wire:
            head = wire.send(get(path, method="HEAD")).reply(to_head=True)
            assert head.status == 200 and int(head.headers["content-length"]) > 0
            assert wire.send(get("/livez")).reply().status == 200
    with Wire(server) as wire:
        assert wire.send(get("/v1/twists/none", method="HEAD")).reply(to_head=True).status == 404


@pytest.mark.parametrize("path,allow,wrong", [
    ("/v1/twists", "GET, HEAD, POST, OPTIONS", ["PUT", "DELETE", "PATCH"]),
    ("/v1/twists/a", "GET, HEAD, DELETE, OPTIONS", ["POST", "PUT", "PATCH"]),
])
def test_methods(server, path, allow, wrong):
    for method in wrong:
        reply = ask(server, get(path, "Content-Length: 0", method=method))
        assert_error(reply, 405, None)
        assert reply.headers["allow"] == allow
    reply = ask(server, get(path, method="OPTIONS"))
    assert (reply.status, reply.headers["allow"]) == (204, allow)


def test_learning_takes_json_only(server):
    request = learn("typed").replace(b"application/json", b"text/plain")
    assert_error(ask(server, request), 415, "Content-Type")


def test_openapi_knows_them(server):
    paths = ask(server, get("/openapi.json")).json()["paths"]
    assert set(paths["/v1/twists"]) >= {"get", "post"}
    assert set(paths["/v1/twists/{name}"]) >= {"get", "delete"}


def test_keys(stub, folder):
    server = stub("--twist-dir", str(folder), "--api-key", "secret")
    for request in (get("/v1/twists"), get("/v1/twists/a"), get("/v1/twists/a", method="DELETE"),
                    learn("keyed"), post("/v1/bounds", {})):
        assert_error(ask(server, request), 401, "Authorization", "authentication_error")
    assert ask(server, get("/v1/twists", "X-Api-Key: secret")).status == 200
    assert ask(server, get("/v1/twists/a", method="OPTIONS")).status == 204


def test_preflight_of_delete(stub, folder):
    server = stub("--twist-dir", str(folder), "--cors-origins", "https://a.example")
    reply = ask(server, get("/v1/twists/a", "Origin: https://a.example",
                            "Access-Control-Request-Method: DELETE", method="OPTIONS"))
    assert reply.status == 204
    assert "DELETE" in reply.headers["access-control-allow-methods"]


# ------------------------------------------------------------------------------ the folder

def test_without_a_folder(stub):
    server = stub()
    assert ask(server, get("/v1/twists")).json()["data"] == []
    for method in ("GET", "DELETE"):
        assert ask(server, get("/v1/twists/a", method=method)).status == 404
    reply = ask(server, learn("homeless"))
    assert reply.status == 400 and "folder" in reply.json()["error"]["message"]


def test_a_missing_folder_is_made(fresh_stub, tmp_path):
    with fresh_stub("--twist-dir", str(tmp_path / "new")) as server:
        ask(server, learn("first"))
        assert names(server) == ["first"]
    assert (tmp_path / "new" / "first.safetensors").exists()


@pytest.mark.parametrize("path", ["no/such/parent", "file", "file/below"])
def test_what_cannot_be_a_folder(stub_program, stub_model, tmp_path, path):
    (tmp_path / "file").write_text("")
    code, lines = refused_start(stub_program, "serve", "--model", str(stub_model), "--port",
                                str(free_port()), "--twist-dir", str(tmp_path / path))
    assert code == 1 and len(lines) == 1
    assert "--twist-dir" in lines[0] and str(tmp_path / path) in lines[0]


def test_a_folder_that_cannot_be_written(fresh_stub, tmp_path):
    """Its twists can be used all the same."""
    folder = str(tmp_path)
    if os.geteuid() == 0:  # whom no mode stops, but the kernel's own folder does
        folder = "/sys"
    else:
        tmp_path.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("everything can be written here")
    with fresh_stub("--twist-dir", folder) as server:
        assert f"--twist-dir: {folder}" in server.log()
        assert names(server) == []


def test_a_folder_that_goes_away(fresh_stub, tmp_path):
    folder = tmp_path / "gone"
    with fresh_stub("--twist-dir", str(folder)) as server:
        folder.rmdir()
        assert ask(server, get("/v1/twists")).status == 500
        assert ask(server, get("/v1/twists/a")).status == 500
        assert ask(server, learn("lost")).events()[-1]["event"] == "error"
        folder.mkdir()
        assert ask(server, learn("back")).events()[-1]["event"] == "done"
        assert names(server) == ["back"]
