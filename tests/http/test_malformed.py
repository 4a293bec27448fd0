"""Bytes that are not HTTP, or HTTP that two readers could read in two ways. The server answers 4xx
or closes; it never hangs, and goes on serving."""
import contextlib
import random
import time

import pytest
from support.watch import metric, wait_until
from wire import Wire, ask, get, is_idle, is_well, post, sample


@pytest.fixture(scope="module")
def server(stub):
    return stub()


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    wait_until(lambda: is_idle(server))
    is_well(server)


BODY = b'{"content":"a"}'
HEAD = b"POST /tokenize HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = {  # name: (headers and body, param of the refusal)
    "length twice, equal": (HEAD + b"Content-Length: 15\r\nContent-Length: 15\r\n\r\n" + BODY,
                            "Content-Length"),
    "length twice, different": (HEAD + b"Content-Length: 15\r\nContent-Length: 3\r\n\r\n" + BODY,
                                "Content-Length"),
    "length and chunks": (HEAD + b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n\r\n"
                          b"f\r\n" + BODY + b"\r\n0\r\n\r\n", "Transfer-Encoding"),
    "chunks and length": (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n\r\n"
                          b"f\r\n" + BODY + b"\r\n0\r\n\r\n", "Transfer-Encoding"),
    "chunks twice": (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
                     b"0\r\n\r\n", "Transfer-Encoding"),
    "another encoding": (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", "Transfer-Encoding"),
    "a list of encodings": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
                            "Transfer-Encoding"),
    "chunks in HTTP/1.0": (b"POST /tokenize HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
                           b"\r\n0\r\n\r\n", "Transfer-Encoding"),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", "Host"),
    "two hosts": (b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "Host"),
    "a space before the colon": (HEAD + b"Content-Length : 15\r\n\r\n" + BODY, None),
    "a name that is no token": (HEAD + b"X(Y): 1\r\nContent-Length: 15\r\n\r\n" + BODY, None),
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_smuggling_is_refused_and_closes(server, name):
    request, param = SMUGGLED[name]
    with Wire(server) as wire:
        reply = wire.send(request + get("/livez")).reply()
        assert (reply.status, reply.json()["error"]["param"]) == (400, param)
        assert "x-request-id" in reply.headers
        assert wire.is_closed(5)
    assert "HTTP/1.1 200" not in wire.buffer.decode("latin-1")


MALFORMED = [
    b"\r\n\r\n", b"\n", b"GET\r\n\r\n", b"GET /\r\n\r\n", b" GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1\r\n\r\n", b"GET / http/1.1\r\n\r\n",
    b"GET / HTTP/0.9\r\n\r\n", b"GET / FTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon here\r\n\r\n", b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n", HEAD + b"Content-Length: x\r\n\r\n",
    HEAD + b"Content-Length: 1e3\r\n\r\n", HEAD + b"Content-Length: 1,1\r\n\r\n",
    HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(5000)) + b"\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 4096, b"\xff" * 4096,
]


@pytest.mark.parametrize("request_bytes", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed(server, request_bytes):
    with Wire(server) as wire:
        try:
            wire.send(request_bytes).half_close()
            answer = wire.rest()
        except OSError as closed:  # before all was sent
            assert not isinstance(closed, TimeoutError)
            return
    if answer:
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 505", b"HTTP/1.0 505",
                                  b"HTTP/1.1 200", b"HTTP/1.1 100")), answer[:100]


def mutants(seed, n):
    """Good requests with a few bytes changed, cut, doubled or moved."""
    r = random.Random(seed)
    good = [get("/livez"), post("/tokenize", {"content": "a"}), sample(max_tokens=2),
            post("/v1/score", {"prompt": "a", "completions": ["b"]}),
            HEAD + b"Transfer-Encoding: chunked\r\n\r\nf\r\n" + BODY + b"\r\n0\r\n\r\n", *MALFORMED[:23]]
    for _ in range(n):
        data = bytearray(r.choice(good))
        for _ in range(r.randint(1, 4)):
            at = r.randrange(len(data) or 1)
            what = r.randrange(5)
            if what == 0:
                data[at:at + 1] = bytes([r.randrange(256)])
            elif what == 1:
                del data[at:at + r.randint(1, 20)]
            elif what == 2:
                data[at:at] = data[at:at + r.randint(1, 20)]
            elif what == 3:
                data[at:at] = r.choice([b"\r\n", b"\r", b"\n", b":", b" ", b"\x00", b"0", b"{"])
            else:
                data = data[:at]
        yield bytes(data)


def test_ten_thousand_malformed_requests(server):
    """Each on its own connection; whatever comes back comes soon."""
    begun, answered = time.monotonic(), 0
    requests = list(mutants(1, 10000))
    for at in range(0, len(requests), 500):
        wires = [Wire(server, timeout=10) for _ in range(500)]
        for wire, data in zip(wires, requests[at:at + 500]):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                wire.send(data)
            with contextlib.suppress(OSError):
                wire.half_close()
        for wire in wires:
            with wire, contextlib.suppress(ConnectionResetError):
                answered += bool(wire.rest())
    assert answered > 1000
    assert time.monotonic() - begun < 240


# ------------------------------------------------------------------------------ too slow

def test_trickled_headers_have_a_deadline(stub):
    server = stub("--header-seconds", "2", "--idle-seconds", "2")
    with Wire(server) as wire:
        wire.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        begun = time.monotonic()
        try:
            while time.monotonic() - begun < 10:
                wire.send(b"X-A: b\r\n")
                time.sleep(0.1)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert 1 < time.monotonic() - begun < 5
    is_well(server)


def test_trickled_body_has_a_deadline(stub):
    server = stub("--header-seconds", "2", "--idle-seconds", "2")
    with Wire(server) as wire:
        wire.send(HEAD + b"Content-Length: 100000\r\n\r\n")
        begun = time.monotonic()
        try:
            while time.monotonic() - begun < 10:
                wire.send(b" ")
                time.sleep(0.1)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert 1 < time.monotonic() - begun < 5
    is_well(server)


def test_silent_connections_are_closed(stub):
    server = stub("--header-seconds", "2", "--idle-seconds", "2")
    with Wire(server) as fresh, Wire(server) as used:
        used.send(get("/livez")).reply()
        assert fresh.is_closed(8)
        assert used.is_closed(8)


def test_two_hundred_trickling_clients_do_not_hold_up_others(stub):
    server = stub("--header-seconds", "2", "--idle-seconds", "2")
    wires = [Wire(server).send(b"POST /v1/sample HTTP/1.1\r\nHost: x\r\nX: ") for _ in range(200)]
    for _ in range(5):
        for wire in wires:
            wire.send(b"y")
        is_well(server)
    wait_until(lambda: metric(server, "clotho_connections") < 10)
    for wire in wires:
        wire.socket.close()
