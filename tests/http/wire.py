"""HTTP spoken by hand, for requests that no library would send."""
import json
import socket
import struct
import time

from support.watch import metric


def post(path, body, *headers, version="1.1"):
    """The bytes of a good POST."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: application/json",
             f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path, *headers, method="GET"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers]).encode() + b"\r\n\r\n"


def sample(script="", particles=1, max_tokens=4, **fields):
    """The bytes of a good /v1/sample for the stub."""
    return post("/v1/sample", {"prompt": script, "particles": particles, "max_tokens": max_tokens,
                               **fields})


class Reply:
    def __init__(self, status, headers, chunks):
        self.status, self.headers, self.chunks = status, headers, chunks
        self.body = b"".join(chunks)

    def json(self):
        return json.loads(self.body)

    def events(self):
        return [json.loads(line) for line in self.body.splitlines()]


class Wire:
    """One TCP connection. Reading past its end is an EOFError."""

    def __init__(self, server, timeout=30, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect((server.host, server.port))
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)
        return self

    def half_close(self):
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self):
        """Leave with a reset instead of a polite end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _more(self):
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the connection ended after {self.buffer[:200]}")
        self.buffer += data

    def line(self):
        while b"\r\n" not in self.buffer:
            self._more()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def take(self, n):
        while len(self.buffer) < n:
            self._more()
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def head(self):
        """(status, headers with lower-case names), interim answers skipped."""
        while True:
            status = int(self.line().split()[1])
            headers = {}
            while line := self.line().decode("latin-1"):
                name, value = line.split(":", 1)
                headers[name.lower()] = value.strip()
            if status >= 200:
                return status, headers

    def chunk(self):
        """The next chunk; the last one is empty."""
        n = int(self.line(), 16)
        data = self.take(n)
        assert self.line() == b""
        return data

    def chunks(self):
        while chunk := self.chunk():
            yield chunk

    def rest(self):
        """All until the other side closes."""
        try:
            while True:
                self._more()
        except EOFError:
            return self.buffer

    def reply(self, to_head=False):
        status, headers = self.head()
        if to_head or status == 204:
            return Reply(status, headers, [])
        if headers.get("transfer-encoding") == "chunked":
            return Reply(status, headers, list(self.chunks()))
        if "content-length" in headers:
            return Reply(status, headers, [self.take(int(headers["content-length"]))])
        return Reply(status, headers, [self.rest()])

    def is_closed(self, within):
        """Does the other side close, or reset, within this time? What it sends is dropped."""
        self.socket.settimeout(within)
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def ask(server, request, **options):
    with Wire(server, **options) as wire:
        return wire.send(request).reply()


def is_well(server):
    """The next good request is answered within a second."""
    begun = time.monotonic()
    reply = ask(server, sample(particles=2))
    seconds = time.monotonic() - begun
    assert reply.status == 200 and reply.events()[-1]["event"] == "done"
    assert seconds < 1, f"the next good request took {seconds:.2f} s"


def is_idle(server):
    """No job, no stream and no request is left but the one that asks."""
    return (metric(server, "clotho_requests_running") == 0
            and metric(server, "clotho_requests_active") == 1)
