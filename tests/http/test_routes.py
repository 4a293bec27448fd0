"""Every route, every refusal with its field, and what is on every answer."""
import json
import re

import pytest
from support.watch import wait_until
from wire import Wire, ask, get, post, sample

GET_ROUTES = ["/health", "/readyz", "/livez", "/v1/models", "/metrics", "/openapi.json", "/"]
POST_ROUTES = ["/v1/sample", "/v1/score", "/v1/bounds", "/tokenize", "/detokenize"]


@pytest.fixture(scope="module")
def server(stub):
    return stub()


def assert_error(reply, status, param, kind="invalid_request_error"):
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == (kind, param)
    assert error["message"]


# ------------------------------------------------------------------------------ answers

@pytest.mark.parametrize("path", GET_ROUTES)
def test_get_routes(server, path):
    reply = ask(server, get(path))
    assert reply.status == 200 and reply.body
    assert int(reply.headers["content-length"]) == len(reply.body)


@pytest.mark.parametrize("path", ["/health", "/readyz", "/livez"])
def test_health(server, path):
    assert ask(server, get(path)).json() == {"status": "ok"}


def test_models(server):
    models = ask(server, get("/v1/models")).json()
    assert models["object"] == "list" and models["data"][0]["id"] == "stub"


def test_tokens_there_and_back(server):
    tokens = ask(server, post("/tokenize", {"content": "the man"})).json()["tokens"]
    assert tokens and all(isinstance(t, int) for t in tokens)
    text = ask(server, post("/detokenize", {"tokens": tokens})).json()["content"]
    assert text.strip() == "the man"


def test_score(server):
    body = {"prompt": "the", "completions": ["man", "day"]}
    results = ask(server, post("/v1/score", body)).json()["results"]
    assert [r["log_p"] for r in results] == [0, -1]


def test_playground_needs_nothing_else(server):
    page = ask(server, get("/"))
    assert page.headers["content-type"].startswith("text/html")
    assert b"<title>Clotho</title>" in page.body
    assert not re.search(rb"(src|href)=\"(https?:)?//", page.body)


def test_openapi_knows_every_route(server):
    paths = ask(server, get("/openapi.json")).json()["paths"]
    assert {*GET_ROUTES, *POST_ROUTES} - {"/"} <= set(paths)


@pytest.mark.parametrize("path", GET_ROUTES)
def test_head_is_get_without_the_body(server, path):
    with Wire(server) as wire:
        head = wire.send(get(path, method="HEAD")).reply(to_head=True)
        assert head.status == 200 and int(head.headers["content-length"]) > 0
        assert wire.send(get("/livez")).reply().status == 200  # no body was in the way


def test_query_is_ignored(server):
    assert ask(server, get("/livez?probe=1")).status == 200


# ------------------------------------------------------------------------------ refusals

@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/sample/", "/v1/sample/x", "//livez",
                                  "/../etc/passwd", "/" + "a" * 4000])
def test_no_such_path(server, path):
    assert_error(ask(server, get(path)), 404, None, "not_found_error")


@pytest.mark.parametrize("path", GET_ROUTES)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
def test_wrong_method_for_get(server, path, method):
    reply = ask(server, get(path, "Content-Length: 0", method=method))
    assert_error(reply, 405, None)
    assert reply.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("path", POST_ROUTES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_wrong_method_for_post(server, path, method):
    reply = ask(server, get(path, method=method))
    assert_error(reply, 405, None)
    assert reply.headers["allow"] == "POST, OPTIONS"


@pytest.mark.parametrize("path", POST_ROUTES)
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain",
                                          "multipart/form-data; boundary=x", "application/jsonp"])
def test_wrong_content_type(server, path, content_type):
    request = (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
               "Content-Length: 2\r\n\r\n{}").encode()
    assert_error(ask(server, request), 415, "Content-Type")


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8",
                                          "application/vnd.x+json", None])
def test_good_content_type(server, content_type):
    header = f"Content-Type: {content_type}\r\n" if content_type else ""
    request = (f"POST /tokenize HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 15\r\n\r\n"
               '{"content":"a"}').encode()
    assert ask(server, request).status == 200


BAD_BODIES = [
    (b"", None), (b"{", None), (b"[]", None), (b"null", None), (b"\xff\xfe", None),
    (b'{"particles":0}', "particles"), (b'{"particles":1.5}', "particles"),
    (b'{"particles":100000}', "particles"), (b'{"max_tokens":0}', "max_tokens"),
    (b'{"nonsense":1}', "nonsense"), (b'{"temperature":-1}', "temperature"),
    (b'{"top_p":2}', "top_p"), (b'{"seed":"x"}', "seed"), (b'{"stop":[1]}', "stop[0]"),
    (b'{"potential":{"type":"magic"}}', "potential.type"),
    (b'{"potential":[{"type":"contains"}]}', "potential[0].text"),
    (b'{"events":["noise"]}', "events[0]"), (b'{"prompt":{}}', "prompt"),
]


@pytest.mark.parametrize("body,param", BAD_BODIES, ids=[b.decode("latin-1") for b, _ in BAD_BODIES])
def test_bad_requests_name_their_field(server, body, param):
    assert_error(ask(server, post("/v1/sample", body)), 400, param)


def test_unknown_model(server):
    reply = ask(server, post("/v1/sample", {"model": "other"}))
    assert_error(reply, 404, "model", "not_found_error")


def test_body_limit_from_content_length(stub):
    server = stub("--limit-body", "4K")
    reply = ask(server, post("/tokenize", {"content": "a" * 4096}))
    assert_error(reply, 413, "Content-Length")


def test_body_limit_of_chunks(stub):
    server = stub("--limit-body", "4K")
    request = (b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
               + 5 * (b"400\r\n" + b"a" * 1024 + b"\r\n") + b"0\r\n\r\n")
    with Wire(server) as wire:
        assert_error(wire.send(request).reply(), 413, "Content-Length")
        assert wire.send(get("/livez")).reply().status == 200


def test_body_limit_before_anything_is_sent(stub):
    server = stub("--limit-body", "4K")
    head = (b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
            b"Expect: 100-continue\r\n\r\n")
    with Wire(server) as wire:
        wire.send(head)
        assert wire.line().startswith(b"HTTP/1.1 413")  # instead of 100


def test_expected_body_is_asked_for(server):
    body = b'{"content":"a"}'
    head = (b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
            b"Expect: 100-continue\r\n\r\n" % len(body))
    with Wire(server) as wire:
        assert wire.send(head).line() == b"HTTP/1.1 100 Continue"
        assert wire.line() == b""
        assert wire.send(body).reply().status == 200


def test_largest_body_is_taken(stub):
    server = stub("--limit-body", "4K")
    body = json.dumps({"content": "a" * (4096 - 15)}).encode()
    assert len(body) == 4096
    assert ask(server, post("/tokenize", body)).status == 200


# ------------------------------------------------------------------------------ every answer

def test_request_ids(server):
    for request in (get("/livez"), get("/nope"), sample(), post("/v1/sample", b"{")):
        made = ask(server, request).headers["x-request-id"]
        assert re.fullmatch(r"req-[0-9a-f]{24}", made)


@pytest.mark.parametrize("given", ["a", "My-Id_1.2:3/4+5=@", "x" * 128])
def test_request_id_is_echoed(server, given):
    for request in (get("/livez", f"X-Request-Id: {given}"), get("/nope", f"X-Request-Id: {given}")):
        assert ask(server, request).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\"b", "\u00e9", "<script>"])
def test_unsafe_request_id_is_replaced(server, given):
    made = ask(server, get("/livez", f"X-Request-Id: {given}")).headers["x-request-id"]
    assert made.startswith("req-") and made != given


def test_options(server):
    for path, allow in (("/livez", "GET, HEAD, OPTIONS"), ("/v1/sample", "POST, OPTIONS"),
                        ("*", "GET, HEAD, POST, DELETE, OPTIONS")):
        reply = ask(server, get(path, method="OPTIONS"))
        assert (reply.status, reply.headers["allow"]) == (204, allow)
    assert ask(server, get("/nope", method="OPTIONS")).status == 404


def test_cors_only_when_asked_for(server, stub):
    origin = "Origin: https://a.example"
    assert "access-control-allow-origin" not in ask(server, get("/livez", origin)).headers
    listed = stub("--cors-origins", "https://b.example,https://a.example")
    reply = ask(listed, get("/livez", origin))
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in ask(listed, get("/livez", "Origin: https://c")).headers
    preflight = ask(listed, get("/v1/sample", origin, "Access-Control-Request-Method: POST",
                                method="OPTIONS"))
    assert preflight.status == 204
    assert "Content-Type" in preflight.headers["access-control-allow-headers"]
    assert {"POST", "DELETE"} <= set(preflight.headers["access-control-allow-methods"].split(", "))
    asked = ask(listed, get("/v1/sample", origin, "Access-Control-Request-Method: POST",
                            "Access-Control-Request-Headers: x-stainless-os", method="OPTIONS"))
    assert asked.headers["access-control-allow-headers"] == "x-stainless-os"
    any_origin = stub("--cors-origins", "*")
    assert ask(any_origin, sample("", 1, 1)).status == 200
    assert "access-control-allow-origin" in ask(any_origin, get("/livez", origin)).headers


def test_log_has_requests_but_no_texts(server):
    ask(server, post("/v1/sample", {"prompt": "a secret", "max_tokens": 1},
                     "X-Request-Id: my-request-1"))
    wait_until(lambda: "my-request-1" in server.log())
    line = next(l for l in server.log().splitlines() if "my-request-1" in l)
    assert re.match(r"time=\S+Z level=info request=my-request-1 method=POST path=/v1/sample "
                    r"status=200 seconds=[0-9.]+ particles=16 queue_seconds=[0-9.]+ "
                    r"prompt_tokens=\d+ tokens=16 end=done$", line)
    assert "secret" not in server.log()
