"""The real program on a free port, and a small client with a kept connection.

    with Server(model, "--dtype", "f32") as server:
        run = server.client().sample(prompt=[0, 2], particles=64, seed=1)
        run.log_z, run.samples[0]["text"]
"""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60  # sanitizers and busy machines are slow
STOP_SECONDS = 60
# One thread is quickest for tiny models and leaves the other cores to the tests themselves.
TINY_FLAGS = ("--threads", "1")
# What --backend is where a test does not say: CLOTHO_TEST_BACKEND, else the program's default.
BACKEND = os.environ.get("CLOTHO_TEST_BACKEND")
BACKEND_FLAGS = (f"--backend={BACKEND}",) if BACKEND else ()


def binary():
    """The program under test: $CLOTHO_BIN, else the release build. Missing is a failure."""
    path = Path(os.environ.get("CLOTHO_BIN", ROOT / "build/release/clotho")).resolve()
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(f"{path}: not there; build it, or set CLOTHO_BIN")
    return str(path)


def environment(extra=None):
    """The caller's environment without settings of the program, so that defaults are defaults."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CLOTHO_")}
    return clean | (extra or {})


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A context manager. Leaving it sends SIGTERM and insists on exit code 0."""

    def __init__(self, model, *flags, env=None, wait=True, program=None):
        self.model, self.flags, self.env, self.wait = str(model), list(flags), env, wait
        self.program = program or binary()
        self.host, self.port = "127.0.0.1", free_port()
        self.process = self.log_file = None
        self.ready_seconds = None
        self._local = threading.local()

    def __enter__(self):
        self.log_file = tempfile.NamedTemporaryFile("w+", prefix="clotho-", suffix=".log")
        command = [self.program, "serve", *BACKEND_FLAGS, "--model", self.model,
                   "--host", self.host, "--port", str(self.port), *self.flags]
        started = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log_file,
                                        stderr=subprocess.STDOUT, env=environment(self.env))
        try:
            if self.wait:
                self.wait_ready(started)
        except BaseException:
            self.kill()
            raise
        return self

    def wait_ready(self, started):
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"exit code {self.process.returncode}:\n{self.log()}")
            try:
                if self.client().get("/readyz").status == 200:
                    break
            except OSError:
                pass
            if time.monotonic() - started > READY_SECONDS:
                raise RuntimeError(f"not ready after {READY_SECONDS} s:\n{self.log()}")
            time.sleep(0.02)
        self.ready_seconds = time.monotonic() - started

    def __exit__(self, kind, *_):
        code = self.stop()
        if kind is None and code != 0:
            raise RuntimeError(f"exit code {code} after SIGTERM:\n{self.log()}")

    def stop(self):
        """SIGTERM, then wait: the exit code. A process that does not go is killed: -9."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self):
        self.process.kill()
        self.process.wait()

    def log(self):
        self.log_file.flush()
        return Path(self.log_file.name).read_text(errors="replace")

    def client(self, **options):
        """With no options, one client a thread is kept and shared."""
        if options:
            return Client(self.host, self.port, **options)
        if not hasattr(self._local, "client"):
            self._local.client = Client(self.host, self.port)
        return self._local.client

    def cpu_seconds(self):
        """Of all its threads, so far: what other programs are doing does not count."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self):
        """Resident bytes now and at most so far (VmRSS, VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kib = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.M))
        return int(kib["VmRSS"]) * 1024, int(kib["VmHWM"]) * 1024


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, answer):
        self.status, self.headers, self.body = answer.status, answer.headers, answer.body
        super().__init__(f"{answer.status}: {answer.body[:500].decode(errors='replace')}")

    @property
    def error(self):
        return json.loads(self.body)["error"]


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self):
        return json.loads(self.body)


class Run:
    """The events of one /v1/sample, sorted by kind. lines are the bytes as they came, without line
    ends and SSE framing."""

    def __init__(self, lines):
        self.lines = lines
        self.events = [json.loads(line) for line in lines]
        self.start = self._only("start")
        self.done = self._only("done")
        self.samples = [e for e in self.events if e["event"] == "sample"]
        self.steps = [e for e in self.events if e["event"] == "step"]
        self.resamples = [e for e in self.events if e["event"] == "resample"]

    def _only(self, kind):
        found = [e for e in self.events if e["event"] == kind]
        if len(found) != 1:
            raise ValueError(f"{len(found)} {kind} events; the last event is {self.events[-1]}")
        return found[0]

    @property
    def log_z(self):
        """-inf where every particle died."""
        return float("-inf") if self.done["log_z"] is None else self.done["log_z"]

    def sample_lines(self):
        return [line for line, e in zip(self.lines, self.events) if e["event"] == "sample"]


class Client:
    """One kept connection; not for several threads at once."""

    def __init__(self, host, port, timeout=120, headers=None):
        self.host, self.port, self.timeout = host, port, timeout
        self.headers = headers or {}
        self.connection = None

    def open(self, method, path, body=None, headers=None):
        """The http.client response, its body unread. An idle connection that the server has closed
        is opened anew."""
        headers = self.headers | (headers or {})
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        for attempt in (1, 2):
            kept = self.connection is not None
            if not kept:
                self.connection = self._connect()
            try:
                self.connection.request(method, path, body, headers)
                return self.connection.getresponse()
            except (ConnectionError, http.client.RemoteDisconnected):
                self.close()
                if not kept or attempt == 2:
                    raise

    def _connect(self):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None

    def get(self, path, headers=None):
        return Answer(self.open("GET", path, headers=headers))

    def post(self, path, body, headers=None):
        return Answer(self.open("POST", path, body, headers))

    def post_ok(self, path, body):
        answer = self.post(path, body)
        if answer.status != 200:
            raise Refused(answer)
        return answer.json()

    def lines(self, path, body, sse=False):
        """Yield the lines of a streamed answer as bytes, as they come. SSE framing is taken off."""
        accept = "text/event-stream" if sse else "application/x-ndjson"
        response = self.open("POST", path, body, {"Accept": accept})
        if response.status != 200:
            raise Refused(Answer(response))
        for line in response:
            line = line.rstrip(b"\r\n")
            if not sse:
                yield line
            elif line.startswith(b"data: ") and line != b"data: [DONE]":
                yield line[len(b"data: "):]

    def sample(self, sse=False, **fields):
        """Draw and read the whole stream."""
        return Run(list(self.lines("/v1/sample", fields, sse)))

    def sample_whole(self, **fields):
        """The same without streaming: the JSON object."""
        return self.post_ok("/v1/sample", fields | {"stream": False})

    def score(self, **fields):
        return self.post_ok("/v1/score", fields)["results"]

    def bounds(self, **fields):
        """The whole answer of /v1/bounds."""
        return self.post_ok("/v1/bounds", fields | {"stream": False})

    def learn(self, **fields):
        """Learn a twist; the whole answer."""
        return self.post_ok("/v1/twists", fields | {"stream": False})
