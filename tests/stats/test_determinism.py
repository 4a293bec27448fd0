"""The same request and seed give the same bytes: alone, repeated, streamed or not, in a crowd, in
batches of any size, and when the cache is too small to keep everything."""
import functools
import json
import random
import threading

import pytest

from support.cases import cases
from support.server import TINY_FLAGS, Server
from support.shapes import ENDING, SPELLINGS

LEXICON = {"type": "lexicon", "bias": {"a": 1.0, "b": -1.0}}
JUDGE = {"type": "judge", "template": "d{text}", "answer": "b", "against": ["c"]}
SHAPE = SPELLINGS | {"dim": 64, "heads": 4, "head_dim": 16, "layers": 2, "ffn": 96}
REQUESTS = {
    "plain": dict(prompt=[0, 2], max_tokens=24),
    "base": dict(prompt=[0, 2, 3], max_tokens=20, potential=[LEXICON, JUDGE],
                 resampling={"scheme": "residual", "ess_threshold": 0.9}),
    "factor": dict(prompt=[0, 4] * 12, max_tokens=20, potential=LEXICON, twist={"type": "factor"},
                   resampling={"scheme": "systematic", "ess_threshold": 1}),
    "potential": dict(prompt=[0], max_tokens=18, temperature=0.8, top_k=5, top_p=0.95,
                      potential=[{"type": "continuation", "text": "ab"}, LEXICON],
                      twist={"type": "potential", "every": 3, "power": 0.5},
                      resampling={"scheme": "stratified", "ess_threshold": 0.7}),
    "segments": dict(prompt=[0, 2], potential=LEXICON, resampling={"scheme": "multinomial"},
                     segments=[{"sample": "x", "max_tokens": 9, "stop": ["dd"]}, {"observe": "ba"},
                               {"sample": "y", "max_tokens": 7}, {"observe": "c"}]),
}


def request(name, particles=24, seed=99):
    return REQUESTS[name] | {"particles": particles, "seed": seed, "logprobs": True}


@pytest.fixture(params=["f32", "bf16"])
def server(serve, request):
    return serve("--dtype", request.param, **SHAPE)


@pytest.mark.parametrize("name", cases(REQUESTS, device=lambda name: name == "segments"))
def test_repeated_and_in_every_form(server, name):
    client = server.client()
    lines = client.sample(**request(name)).sample_lines()
    assert len(lines) == 24
    assert client.sample(**request(name)).sample_lines() == lines
    assert client.sample(**request(name), sse=True).sample_lines() == lines
    assert client.sample(**request(name), events=["sample"]).sample_lines() == lines
    assert client.sample(**request(name, seed="99")).sample_lines() == lines
    assert client.sample(**request(name, seed=100)).sample_lines() != lines
    whole = client.sample_whole(**request(name))
    event = {"event": "sample"}
    assert [event | s for s in whole["samples"]] == [json.loads(line) for line in lines]


class Crowd:
    """Other clients, each with requests of its own until told to stop. Some leave mid-stream."""

    def __init__(self, server, clients=16):
        self.server, self.stop, self.failures, self.answers = server, threading.Event(), [], 0
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for t in self.threads:
            t.join()

    def _run(self, i):
        rng = random.Random(i)
        try:
            while not self.stop.is_set():
                self._one(rng)
                self.answers += 1
        except Exception as e:  # noqa: BLE001 - reported by the test
            self.failures.append(repr(e))

    def _one(self, rng):
        client = self.server.client()
        fields = request(rng.choice(list(REQUESTS)), rng.choice([1, 5, 30, 70]), rng.randrange(1 << 40))
        kind = rng.random()
        if kind < 0.2:
            texts = [[rng.randrange(2, 6) for _ in range(rng.randrange(1, 30))] for _ in range(9)]
            client.score(prompt=[0, 3], completions=texts)
        elif kind < 0.35:
            for i, _ in enumerate(client.lines("/v1/sample", fields)):
                if i == rng.randrange(1, 6):
                    break
            client.close()
        else:
            client.sample(**fields, sse=rng.random() < 0.5)


def test_amid_sixteen_other_clients(server):
    alone = {name: server.client().sample(**request(name)).sample_lines() for name in REQUESTS}
    with Crowd(server) as crowd:
        for _ in range(6):
            for name, lines in alone.items():
                assert server.client().sample(**request(name)).sample_lines() == lines
    assert not crowd.failures
    assert crowd.answers > 16


def scores(client):
    rng = random.Random(3)
    texts = [[rng.randrange(2, 6) for _ in range(rng.randrange(1, 60))] for _ in range(40)]
    return client.score(prompt=[0, 3], completions=texts, per_token=True)


@pytest.fixture(scope="module")
def expected(serve):
    """expected(dtype) -> what a server with the default settings answers."""
    @functools.cache
    def of(dtype):
        client = serve("--dtype", dtype, **SHAPE).client()
        return {n: client.sample(**request(n)).sample_lines() for n in REQUESTS}, scores(client)
    return of


@pytest.mark.parametrize("flags,dtype", cases(
    ["--batch-rows=16", "--batch-rows=37", "--batch-rows=1024", "--threads=2"], ["f32", "bf16"],
    device=lambda *case: case == ("--batch-rows=37", "bf16")))
def test_any_batch(model_file, expected, flags, dtype):
    with Server(model_file(**SHAPE), *TINY_FLAGS, "--dtype", dtype, flags) as server:
        samples, scored = expected(dtype)
        for name, lines in samples.items():
            assert server.client().sample(**request(name)).sample_lines() == lines
        assert scores(server.client()) == scored
        with Crowd(server, 4):
            for name, lines in samples.items():
                assert server.client().sample(**request(name)).sample_lines() == lines


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_cache_too_small_to_keep_everything(model_file, expected, dtype):
    """Populations are computed again when their pages are needed: slower, and the same bytes."""
    with Server(model_file(**SHAPE), *TINY_FLAGS, "--dtype", dtype, "--kv-memory", "200K") as server:
        samples, scored = expected(dtype)
        with Crowd(server, 6) as crowd:
            for _ in range(3):
                for name, lines in samples.items():
                    assert server.client().sample(**request(name)).sample_lines() == lines
        assert scores(server.client()) == scored
        assert not crowd.failures
        metrics = server.client().get("/metrics").body.decode()
    recomputed = [line for line in metrics.splitlines() if line.startswith("clotho_recomputed")]
    assert recomputed and float(recomputed[0].split()[-1]) > 0, "the cache was not small enough"
