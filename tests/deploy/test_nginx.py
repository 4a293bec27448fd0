"""deploy/nginx in front of two real servers: every kind of client, streams that pass event by event, and
what clients see when a replica goes away."""
import json
import os
import re
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import requests
from selenium import webdriver
from support.nginx import Nginx
from support.server import TINY_FLAGS, Server, binary
from support.shapes import ENDLESS
from support.watch import metric, wait_until

LONG = ENDLESS | {"context": 4096}
FLAGS = (*TINY_FLAGS, "--max-running-particles", "64", "--max-queue", "2")
SHORT_BODY = {"prompt": [0, 2], "particles": 8, "max_tokens": 12, "seed": 3}
LONG_BODY = {"prompt": [0, 2], "particles": 8, "max_tokens": 4000, "seed": 3}


@pytest.fixture(scope="module")
def pair(model_file):
    """Two servers that only these tests ask, for those that leave them as they were."""
    with Server(model_file(**LONG), *FLAGS) as a, Server(model_file(**LONG), *FLAGS) as b:
        yield a, b


@pytest.fixture(scope="module")
def nginx(pair, tmp_path_factory):
    with Nginx(tmp_path_factory.mktemp("nginx"), pair) as it:
        yield it


@pytest.fixture
def mortal(model_file, tmp_path):
    """(nginx, servers) of one test, which may stop or kill them."""
    servers = [Server(model_file(**LONG), *TINY_FLAGS) for _ in range(2)]
    try:
        for server in servers:
            server.__enter__()
        with Nginx(tmp_path, servers) as it:
            yield it, servers
    finally:
        for server in servers:
            server.kill()


def post(nginx, body, path="/v1/sample", **options):
    return requests.post(nginx.url + path, json=body, verify=nginx.certificate, timeout=60, **options)


class Stream:
    """An iterator of the lines of an answer, as they come."""

    def __init__(self, nginx, body):
        self.answer = post(nginx, body, stream=True)
        assert self.answer.status_code == 200, self.answer.text
        self.lines = self.answer.iter_lines(chunk_size=1)

    def __iter__(self):
        return self.lines

    def next_event(self):
        return json.loads(next(self.lines))["event"]

    def close(self):
        self.answer.close()


def begun(nginx, **fields):
    """A long stream that has begun."""
    stream = Stream(nginx, LONG_BODY | fields)
    assert stream.next_event() == "start"
    return stream


def held(server):
    """Requests that run or wait."""
    return metric(server, "clotho_requests_running") + metric(server, "clotho_requests_waiting")


def wait_idle(pair):
    wait_until(lambda: not any(map(held, pair)))


def samples(lines):
    return [line for line in lines if b'"event":"sample"' in line]


# ------------------------------------------------------------------------------- clients


def test_nothing_to_complain_about(nginx):
    check = nginx.check()
    assert check.returncode == 0 and "warn" not in check.stderr, check.stderr


def test_curl(nginx, pair):
    """HTTP/2, and the very bytes that a replica sends by itself."""
    curl = subprocess.run(["curl", "-sSN", "--cacert", nginx.certificate, nginx.url + "/v1/sample", "--json",
                           json.dumps(SHORT_BODY)], capture_output=True, check=True)
    direct = pair[0].client().sample(**SHORT_BODY)
    assert samples(curl.stdout.splitlines()) == direct.sample_lines()
    assert json.loads(curl.stdout.splitlines()[-1])["event"] == "done"


def test_requests(nginx, pair):
    lines = list(Stream(nginx, SHORT_BODY))
    assert samples(lines) == pair[1].client().sample(**SHORT_BODY).sample_lines()
    whole = post(nginx, SHORT_BODY | {"stream": False}).json()
    assert [s["text"] for s in whole["samples"]] == [json.loads(line)["text"] for line in samples(lines)]


def test_openai(nginx):
    """The unmodified client: streamed and whole, a potential in extra_body, an error with its field."""
    tls = ssl.create_default_context(cafile=nginx.certificate)
    client = openai.OpenAI(base_url=nginx.url + "/v1", api_key="none",
                           http_client=openai.DefaultHttpxClient(verify=tls))
    model = client.models.list().data[0].id
    fields = {"model": model, "prompt": [0, 2], "max_tokens": 12, "seed": 3, "n": 2,
              "extra_body": {"particles": 8, "potential": {"type": "contains", "text": "a", "soft": -1}}}
    whole = client.completions.create(**fields)
    texts = ["", ""]
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices] and all(texts)
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=model, prompt=[0, 2], extra_body={"particles": 0})
    assert refused.value.param == "particles"


def test_events_of_the_server_kind(nginx):
    answer = post(nginx, SHORT_BODY, headers={"Accept": "text/event-stream"})
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.text.endswith("data: [DONE]\n\n") and '"event":"done"' in answer.text


FETCH = """
const [body] = arguments, pieces = [];
const response = await fetch("/v1/sample", {method: "POST", body: JSON.stringify(body),
                                              headers: {"Content-Type": "application/json"}});
const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    pieces.push(value);
}
return [response.status, pieces];
"""


CHROMEDRIVER = "/usr/bin/chromedriver"


@pytest.fixture(scope="module")
def browser():
    if not os.path.exists(CHROMEDRIVER):
        pytest.skip("no Chromium from the distribution")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.accept_insecure_certs = True
    service = webdriver.ChromeService(CHROMEDRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def test_browser(nginx, browser):
    """fetch's stream: many pieces, and together a whole answer."""
    browser.get(nginx.url + "/")
    status, pieces = browser.execute_script(FETCH, LONG_BODY | {"max_tokens": 1500})
    lines = [json.loads(line) for line in "".join(pieces).splitlines()]
    assert status == 200 and len(pieces) > 1
    assert lines[0]["event"] == "start" and lines[-1]["event"] == "done"


# ------------------------------------------------------------------------------- streams


def test_events_come_one_by_one(model_file, tmp_path):
    """The first events of an answer that would fit any buffer are here while the last are still to be made."""
    stub = Server(model_file(tokenizer="bytes"), program=str(Path(binary()).with_name("clotho-stub")))
    with stub, Nginx(tmp_path, [stub, stub]) as nginx:
        stream = Stream(nginx, {"prompt": "us=400000", "particles": 1, "max_tokens": 3})
        assert [stream.next_event() for _ in range(2)] == ["start", "step"]
        assert held(stub) == 1
        assert len(list(stream)) == 4


def test_a_client_that_leaves(nginx, pair):
    before = sum(metric(s, "clotho_jobs_cancelled_total") for s in pair)
    begun(nginx, particles=64).close()
    wait_until(lambda: sum(metric(s, "clotho_jobs_cancelled_total") for s in pair) == before + 1)


def test_the_less_busy_replica(nginx, pair):
    """Not just the next one: the streams of one replica end, and the next two are its."""
    streams = ([], [])
    for n in range(4):
        before = held(pair[0])
        stream = begun(nginx)
        wait_until(lambda: sum(map(held, pair)) == n + 1)
        streams[0 if held(pair[0]) > before else 1].append(stream)
    assert [len(s) for s in streams] == [2, 2]
    for stream in streams[0]:
        stream.close()
    wait_until(lambda: held(pair[0]) == 0)
    more = [begun(nginx) for _ in range(2)]
    wait_until(lambda: sum(map(held, pair)) == 4)
    assert [held(s) for s in pair] == [2, 2]
    for stream in streams[1] + more:
        stream.close()
    wait_idle(pair)


def test_a_full_queue_is_an_honest_429(nginx, pair):
    """Each replica runs one such request and lets two wait."""
    body = LONG_BODY | {"particles": 64}
    answers = []
    for _ in range(6):
        answers.append(post(nginx, body, stream=True))
        wait_until(lambda: sum(map(held, pair)) == len(answers))
    refused = post(nginx, body)
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_error"
    for answer in answers:
        assert answer.status_code == 200
        answer.close()
    wait_idle(pair)
    assert post(nginx, SHORT_BODY).status_code == 200  # and no replica was taken for a broken one


# ------------------------------------------------------------------------------- ids, limits, errors


def ask_with_id(nginx, request_id):
    return requests.get(nginx.url + "/v1/models", headers={"X-Request-Id": request_id}, verify=nginx.certificate,
                        timeout=60).headers["X-Request-Id"]


def test_request_ids(nginx, pair):
    """One id in the answer and in both logs: the client's, unless it is no good."""
    assert ask_with_id(nginx, "of-the/client:1") == "of-the/client:1"
    made = ask_with_id(nginx, "not good")
    assert re.fullmatch("[0-9a-f]{32}", made)
    for request_id in ("of-the/client:1", made):
        wait_until(lambda: any(f"request={request_id} " in line for line in nginx.log()))
        assert any(f"request={request_id} " in server.log() for server in pair)


def check_refusal(answer, status, kind):
    assert answer.status_code == status and answer.headers["X-Request-Id"]
    assert answer.headers["Content-Type"] == "application/json"
    error = answer.json()["error"]
    assert error["type"] == kind and {"message", "param", "code"} < error.keys()


def test_what_nginx_refuses(nginx):
    get = requests.get(nginx.url + "/metrics", verify=nginx.certificate, timeout=60)
    check_refusal(get, 404, "not_found_error")
    check_refusal(post(nginx, {"prompt": "a" * (9 << 20)}), 413, "invalid_request_error")
    plain = requests.post(f"http://localhost:{nginx.plain_port}/v1/sample?a=b", allow_redirects=False, timeout=60)
    assert plain.status_code == 308 and plain.headers["Location"] == "https://localhost/v1/sample?a=b"


def test_limits_of_nginx(pair, tmp_path):
    """An address that is not trusted, and asks faster than it may."""
    with Nginx(tmp_path, pair, trusted=False) as strict, requests.Session() as session:
        for _ in range(500):
            answer = session.get(strict.url + "/livez", verify=strict.certificate, timeout=60)
            if answer.status_code != 200:
                break
        check_refusal(answer, 429, "rate_limit_error")
        assert answer.headers["Retry-After"] == "1"


# ------------------------------------------------------------------------------- replicas go away


class Load:
    """Short requests by four clients, until it is left."""

    def __init__(self, nginx):
        self.nginx, self.answers, self.over = nginx, [], threading.Event()
        self.pool = ThreadPoolExecutor(4)

    def _client(self, _):
        with requests.Session() as session:
            while not self.over.is_set():
                answer = session.post(self.nginx.url + "/v1/sample", json=SHORT_BODY, timeout=60,
                                      verify=self.nginx.certificate)
                self.answers.append((answer.status_code, answer.content.splitlines()[-1]))

    def __enter__(self):
        self.clients = [self.pool.submit(self._client, i) for i in range(4)]
        return self

    def wait(self, more):
        target = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= target or any(c.done() for c in self.clients))

    def __exit__(self, *_):
        self.over.set()
        for client in self.clients:
            client.result()
        self.pool.shutdown()


def test_a_replica_drains(mortal):
    """Its streams run to their ends, and no request is lost: neither those that find it closing its kept
    connections, nor those that it refuses."""
    nginx, servers = mortal
    with Load(nginx) as load:
        load.wait(40)
        slow = [begun(nginx, max_tokens=1000) for _ in range(2)]
        servers[0].process.terminate()
        load.wait(40)
        for stream in slow:
            assert b'"event":"done"' in list(stream)[-1]
        assert servers[0].process.wait(30) == 0
        load.wait(40)
    assert len(load.answers) >= 120
    assert all(status == 200 and b'"event":"done"' in last for status, last in load.answers)


def check_torn(stream):
    seen = []
    with pytest.raises(requests.exceptions.RequestException):
        seen.extend(stream)
    assert not any(b'"event":"done"' in line for line in seen)


def test_both_replicas_are_killed(mortal):
    """What they were sending is broken off, and visibly so."""
    nginx, servers = mortal
    curl = subprocess.Popen(["curl", "-sSN", "--cacert", nginx.certificate, nginx.url + "/v1/sample", "--json",
                             json.dumps(LONG_BODY)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert b'"start"' in curl.stdout.readline()
    streams = [begun(nginx, particles=32), begun(nginx, particles=32)]
    for server in servers:
        server.kill()
    for stream in streams:
        check_torn(stream)
    rest, error = curl.communicate(timeout=30)
    assert curl.returncode != 0 and error and b'"event":"done"' not in rest
    check_refusal(post(nginx, SHORT_BODY), 503, "overloaded_error")


def test_one_of_two_is_killed(mortal):
    """Whoever comes next is served by the other one."""
    nginx, servers = mortal
    torn = begun(nginx, particles=32)
    next(s for s in servers if held(s)).kill()
    for _ in range(6):
        assert b'"event":"done"' in post(nginx, SHORT_BODY).content.splitlines()[-1]
    check_torn(torn)
