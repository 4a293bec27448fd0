"""Two servers behind nginx under a load of all kinds of requests, while one fault after another happens. Every answer
that is whole is the very one that the request gets from a server of its own; what is not whole cannot be taken for it."""
import json
import random
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from support.nginx import Nginx
from support.server import TINY_FLAGS, Server
from support.shapes import ENDLESS
from support.watch import WAIT_SECONDS, metric, wait_until

CLIENTS, SEEDS = 6, 8
MORE = 40  # whole answers between faults
LONG = ENDLESS | {"context": 4096}
FLAGS = (*TINY_FLAGS, "--max-running-particles", "64", "--header-seconds", "2", "--idle-seconds", "5", "--drain-seconds", "1")


def stream_body(seed):
    return {"prompt": [0, 2], "particles": 8, "max_tokens": 40, "seed": seed, "resampling": {"ess_threshold": 1},
            "potential": {"type": "lexicon", "bias": {"#3": 1}}}


def requests_of(seed):
    """Path and body of each kind."""
    prompts = [[0, 2], [0, 3, 2]]
    return [("/v1/sample", stream_body(seed)),
            ("/v1/sample", stream_body(seed) | {"stream": False}),
            ("/v1/completions", {"prompt": prompts, "n": 2, "max_tokens": 20, "seed": seed}),
            ("/v1/completions", {"prompt": prompts, "max_tokens": 20, "seed": seed, "stream": True}),
            ("/v1/score", {"prompt": [0, 2], "completions": [[seed % 4 + 2, 3]], "per_token": True})]


def whole_answer(text):
    """What must be the same in every answer to a request; None if it has no proper end."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    if lines and lines[-1] == "[DONE]":
        return [json.loads(line)["choices"] for line in lines[:-1]]
    try:
        events = [json.loads(line) for line in lines]
    except ValueError:
        return None
    if len(events) == 1:
        return events[0].get("choices") or events[0].get("results") or events[0].get("samples")
    return [line for line, e in zip(lines, events) if e["event"] == "sample"] if events[-1:] and \
        events[-1]["event"] == "done" else None


class Load:
    """Clients that ask one after another until it is left; their answers are held to the expected ones."""

    def __init__(self, nginx, expected):
        self.nginx, self.expected = nginx, expected
        self.whole, self.others, self.wrong = 0, Counter(), []
        self.over = threading.Event()

    def _ask(self, session, path, body):
        answer = session.post(self.nginx.url + path, json=body, verify=self.nginx.certificate, timeout=60)
        if answer.status_code != 200:
            self.others[answer.status_code] += 1
            assert answer.status_code in (429, 503), answer.text
        elif (got := whole_answer(answer.text)) is None:
            self.others["an error at its end" if '"error"' in answer.text else "no end"] += 1
        elif got != self.expected[path, json.dumps(body)]:
            self.wrong.append((path, body, answer.text))
        else:
            self.whole += 1

    def _client(self, seed):
        choose = random.Random(seed)
        with requests.Session() as session:
            while not self.over.is_set():
                path, body = choose.choice(requests_of(choose.randrange(SEEDS)))
                try:
                    self._ask(session, path, body)
                except requests.exceptions.RequestException:
                    self.others["broken off"] += 1

    def __enter__(self):
        self.pool = ThreadPoolExecutor(CLIENTS)
        self.clients = [self.pool.submit(self._client, i) for i in range(CLIENTS)]
        return self

    def go_on(self):
        target = self.whole + MORE
        wait_until(lambda: self.whole >= target or any(c.done() for c in self.clients))

    def __exit__(self, *_):
        self.over.set()
        self.pool.shutdown()
        for client in self.clients:
            client.result()


@pytest.fixture(scope="module")
def expected(model_file):
    """From a server that has nothing else to do."""
    answers = {}
    with Server(model_file(**LONG), *FLAGS) as alone:
        for path, body in (r for seed in range(SEEDS) for r in requests_of(seed)):
            answer = requests.post(f"http://127.0.0.1:{alone.port}{path}", json=body, timeout=60)
            answers[path, json.dumps(body)] = whole_answer(answer.text)
    assert all(answers.values())
    return answers


def stall(servers, text, clients=40):
    """Clients that begin to say something and stop."""
    stalled = []
    for i in range(clients):
        stalled.append(socket.create_connection((servers[i % 2].host, servers[i % 2].port)))
        stalled[-1].sendall(text)
    return stalled


def begin_and_never_read(server):
    body = json.dumps(stream_body(1) | {"particles": 32, "max_tokens": 4000}).encode()
    return stall([server] * 2, b"POST /v1/sample HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body), 4)


def serves_again(server):
    """nginx leaves a server that has failed alone for some seconds."""
    server.__enter__()
    wait_until(lambda: metric(server, "clotho_jobs_done_total") > 0)


def faults(load, a, b):
    """Everybody else is served while clients stall, and a server can go at any time."""
    load.go_on()
    stalled = stall((a, b), b"POST /v1/sample HTTP/1.1\r\nHost")
    stalled += stall((a, b), b"POST /v1/sample HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{\"prompt\"")
    stalled += stall((a, b), b"\x16\x03\x01\x02\x00\x01\x00")
    load.go_on()
    stalled += begin_and_never_read(a)
    load.go_on()
    assert not load.others
    a.kill()
    load.go_on()
    serves_again(a)
    b.process.terminate()
    load.go_on()
    b.process.wait(WAIT_SECONDS)
    serves_again(b)
    load.go_on()
    for connection in stalled:
        connection.close()


def test_one_fault_after_another(model_file, tmp_path, expected):
    with Server(model_file(**LONG), *FLAGS) as a, Server(model_file(**LONG), *FLAGS) as b:
        with Nginx(tmp_path, [a, b]) as nginx, Load(nginx, expected) as load:
            faults(load, a, b)
        assert not load.wrong, load.wrong[0]
        # What had begun to be answered when its server was killed; all else was asked of the other one.
        assert set(load.others) <= {"broken off", "no end"} and sum(load.others.values()) <= CLIENTS, load.others
        wait_until(lambda: all(metric(s, "clotho_kv_pages_used") == 0 for s in (a, b)))
