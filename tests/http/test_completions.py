"""POST /v1/completions as the openai package sends it, over tiny models, and the laws of its choices."""
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from support.posterior import Problem
from support.reference import Prior, log_softmax
from support.shapes import BOS, ENDING
from support.watch import metric, wait_until
from wire import Wire, post

WORDS = dict(tokenizer="bytes", seed=2)  # any bytes, and some words
ASCII = {str(3 + b): -100 for b in range(128, 256)}  # as a logit_bias of that model
LETTERS = Prior(logit_bias={BOS: -100.0})  # BOS has no text to know it by


def client(server, **options):
    return openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1",
                         **({"api_key": "-", "max_retries": 0} | options))


@pytest.fixture(scope="module")
def words(serve):
    return serve("--dtype", "f32", **WORDS)


@pytest.fixture(scope="module")
def letters(serve):
    return serve("--dtype", "f32", **ENDING)


@pytest.fixture(scope="module")
def complete(words):
    """complete(prompt, **fields) -> the answer."""
    api = client(words)

    def ask(prompt="the man", **fields):
        return api.completions.create(**{"model": "", "prompt": prompt, "seed": 1} | fields)

    name = api.models.list().data[0].id
    return lambda *a, **fields: ask(*a, **{"model": name} | fields)


def texts(answer):
    assert [c.index for c in answer.choices] == list(range(len(answer.choices)))
    return [c.text for c in answer.choices]


def streamed(chunks):
    """(texts, finish reasons, usage) of a stream, by index; every chunk says something."""
    text, reason, usage = {}, {}, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert choice.text or choice.finish_reason
            assert choice.index not in reason, "a choice goes on after its end"
            text[choice.index] = text.get(choice.index, "") + choice.text
            if choice.finish_reason:
                reason[choice.index] = choice.finish_reason
    indices = range(len(text))
    return [text[i] for i in indices], [reason[i] for i in indices], usage


# --------------------------------------------------------------------------- shapes

def test_defaults(complete):
    answer = complete()
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.model in answer.system_fingerprint or "clotho" in answer.system_fingerprint
    assert len(answer.choices) == 1 and answer.choices[0].logprobs is None
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == 3 and answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == 3 + answer.usage.completion_tokens


def test_one_prompt_in_every_form(complete, words):
    ids = words.client().post_ok("/tokenize", {"content": "the man", "add_special": True})["tokens"]
    want = texts(complete(n=2))
    assert texts(complete(["the man"], n=2)) == want
    assert texts(complete(ids, n=2)) == want
    assert texts(complete([ids], n=2)) == want


def test_several_prompts(complete):
    answer = complete(["the man", "of", "all"], n=2, echo=True, max_tokens=6)
    got = texts(answer)
    assert [t[:3] for t in got] == ["the", "the", "of" + got[2][2], "of" + got[3][2], "all", "all"]
    assert answer.usage.prompt_tokens == 3 + 2 + 2
    assert got[:2] == texts(complete("the man", n=2, echo=True, max_tokens=6))  # alone, the same
    same = texts(complete(["of"] * 2, max_tokens=12))
    assert same[0] != same[1]  # prompts draw for themselves


@pytest.mark.parametrize("fields", [{}, {"logprobs": 0}, {"logprobs": 0, "echo": True, "max_tokens": 0},
                                    {"max_tokens": 0}], ids=str)
def test_more_prompts_than_run_at_once(complete, fields):
    fields = {"max_tokens": 2} | fields
    answer = complete([[1, 3 + i] for i in range(100)], **fields)
    assert len(texts(answer)) == 100 and answer.usage.prompt_tokens == 200
    if fields.get("echo"):
        assert [c.logprobs.tokens[1] for c in answer.choices[97:]] == ["a", "b", "c"]
    else:
        assert texts(answer)[0] == texts(complete([[1, 3]], **fields))[0]


def test_nothing_drawn(complete):
    answer = complete(max_tokens=0, echo=True)
    assert texts(answer) == ["the man"] and answer.usage.completion_tokens == 0
    assert texts(complete(max_tokens=0)) == [""]


def test_plain_choices_are_the_particles_of_sample(complete, words):
    samples = words.client().sample_whole(prompt="the man", particles=4, max_tokens=16, seed=1)["samples"]
    assert texts(complete(n=4)) == [s["text"] for s in samples]


# --------------------------------------------------------------------------- streams

@pytest.mark.parametrize("fields", [
    {}, {"n": 3}, {"prompt": ["of", "all"], "n": 2, "echo": True}, {"logprobs": 1, "n": 2},
    {"max_tokens": 0, "echo": True}, {"temperature": 0},
], ids=str)
def test_stream_says_what_the_whole_says(complete, fields):
    whole = complete(**fields)
    got, reasons, usage = streamed(complete(**fields, stream=True, stream_options={"include_usage": True}))
    assert got == texts(whole)
    assert reasons == [c.finish_reason for c in whole.choices]
    assert usage == whole.usage


def test_plain_text_comes_token_by_token(complete):
    chunks = list(complete(stream=True, max_tokens=8, logit_bias={"2": -100}))
    assert len(chunks) >= 6 and all(c.usage is None for c in chunks)


def test_characters_are_whole(complete):
    """Only bytes of é, ü and 漢 are drawn, in any order."""
    bias = {str(3 + b): 60 for b in set("éü漢".encode())}
    fields = dict(n=8, max_tokens=48, logit_bias=bias)
    chunks = list(complete(stream=True, **fields))
    whole = texts(complete(**fields))
    assert streamed(chunks)[0] == whole
    said = "".join(c.choices[0].text for c in chunks)
    assert set(said) & set("éü漢") and said.count("\ufffd") == "".join(whole).count("\ufffd")


@pytest.mark.parametrize("length", [1, 3, 5])
def test_stop_strings_are_trimmed(complete, length):
    fields = dict(max_tokens=24, n=4, logit_bias=ASCII | {"2": -100})
    free = texts(complete(**fields))
    stop = free[0][9:9 + length]
    fields |= {"stop": ["never seen", stop]}
    answer = complete(**fields)
    assert texts(answer) == [t.split(stop)[0] for t in free]
    reasons = ["stop" if stop in t else c.finish_reason for t, c in zip(free, answer.choices)]
    assert [c.finish_reason for c in answer.choices] == reasons
    assert streamed(complete(**fields, stream=True))[:2] == (texts(answer), reasons)
    assert texts(complete(**fields | {"stop": stop})) == texts(answer)


# --------------------------------------------------------------------------- log-probabilities

def test_echo_scores_what_score_scores(complete, words):
    ids = [1, 262, 300, 17, 290, 301]
    score, = words.client().score(prompt=ids[:1], completions=[ids[1:]], per_token=True)
    for max_tokens in 0, 1:
        got = complete(ids, max_tokens=max_tokens, echo=True, logprobs=0, temperature=0).choices[0].logprobs
        assert got.token_logprobs[0] is None and got.top_logprobs[0] is None
        assert got.token_logprobs[1:len(ids)] == score["token_log_p"]
        assert len(got.tokens) == len(ids) + max_tokens


def test_drawn_tokens_have_the_models_own_probabilities(complete, words):
    """Not those of the prior that they were drawn from."""
    prior = dict(max_tokens=6, temperature=0.6, top_p=0.9, logit_bias={"300": 2})
    answer = complete(n=3, logprobs=2, **prior, extra_body={"top_k": 50})
    assert texts(answer) == texts(complete(n=3, **prior, extra_body={"top_k": 50}))
    samples = words.client().sample_whole(prompt="the man", particles=3, seed=1, top_k=50, **prior)["samples"]
    scores = words.client().score(prompt="the man", completions=[s["tokens"] for s in samples],
                                  per_token=True)
    for choice, score in zip(answer.choices, scores):
        assert choice.logprobs.token_logprobs == score["token_log_p"]


def test_likeliest_tokens(letters, reference):
    """As a float64 model has them; the token itself is there even if it is not one of them."""
    model, ids = reference(**ENDING), [0, 2, 3, 5, 2]
    answer = client(letters).completions.create(model="", prompt=ids, max_tokens=0, echo=True, logprobs=3,
                                                extra_body={"model": None})
    got = answer.choices[0].logprobs
    names = ["<s>", "</s>", "a", "b", "c", "d"]
    assert got.tokens == [names[i] for i in ids]
    for t in range(1, len(ids)):
        log_p = log_softmax(model.next_logits([tuple(ids[:t])])[0])
        best = {names[i] for i in np.argsort(-log_p)[:3]} | {names[ids[t]]}
        assert set(got.top_logprobs[t]) == best
        for name, value in got.top_logprobs[t].items():
            assert value == pytest.approx(log_p[names.index(name)], abs=1e-4)
        assert got.top_logprobs[t][got.tokens[t]] == got.token_logprobs[t]


def test_offsets(complete):
    answer = complete("the man", max_tokens=8, echo=True, logprobs=1,
                      logit_bias=ASCII)
    choice = answer.choices[0]
    offsets, text = choice.logprobs.text_offset, choice.text
    assert offsets[:3] == [0, 0, 3] and text.startswith("the man")  # BOS; the tokenizer's own space
    for token, begin, end in zip(choice.logprobs.tokens[3:], offsets[3:], [*offsets[4:], len(text)]):
        assert text[begin:end] == ("" if token == "</s>" else token)


def test_as_a_harness_sends_it(words):
    """lm-eval's local-completions: batches of ids, and greedy told by the likeliest token."""
    batch = [[1, 262, 300, 17], [1, 290], [1, 301, 302, 303, 304]]
    answer = words.client().post_ok("/v1/completions", {
        "prompt": batch, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True})
    for ids, choice in zip(batch, sorted(answer["choices"], key=lambda c: c["index"])):
        got = choice["logprobs"]
        scores = words.client().score(prompt=ids[:1], completions=[ids[1:]], per_token=True)
        assert got["token_logprobs"][1:-1] == scores[0]["token_log_p"]
        tops = got["top_logprobs"]
        assert all(max(top.values()) >= p for top, p in zip(tops[1:], got["token_logprobs"][1:]))
        assert max(tops[-1], key=tops[-1].get) == got["tokens"][-1]  # the greedy continuation is greedy


# --------------------------------------------------------------------------- laws

def law(solution, decode, weights):
    """(text, stopped) -> probability."""
    out = Counter()
    for text, weight in zip(solution.texts, weights):
        out[decode(text.tokens), text.stopped] += weight
    return out


def check_frequencies(runs, exact):
    """Of each likely outcome in runs of draws, against its probability, by the runs' own spread."""
    for outcome, p in exact.items():
        if p < 0.02:
            continue
        f = np.array([sum(o == outcome for o in run) / len(run) for run in runs])
        error = np.hypot(f.std(ddof=1), np.sqrt(p * (1 - p) / len(runs[0]))) / np.sqrt(len(runs))
        assert abs(f.mean() - p) < 5 * error + 2e-3, f"{outcome}: {f.mean():.4f} for {p:.4f}"
    assert all(o in exact for run in runs for o in run)


def draw(server, fields, seeds):
    def one(seed):
        answer = server.client().post_ok("/v1/completions", fields | {"seed": seed})
        return [(c["text"], c["finish_reason"] == "stop") for c in answer["choices"]]

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(seeds)))


def test_plain_choices_follow_the_prior(letters, reference):
    target = Problem(reference(**ENDING), (0, 2), LETTERS, max_tokens=3)
    exact = law(target.solve(), target.model.tokenizer.decode, np.exp(target.solve().log_prior))
    check_frequencies(draw(letters, target.fields() | {"n": 500}, 20), exact)


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial", "residual"])
def test_choices_follow_the_posterior(letters, reference, scheme):
    potential = ({"type": "contains", "text": "a", "soft": -2.0},
                 {"type": "lexicon", "bias": {"b": 1.5, "c": -1.0}})
    target = Problem(reference(**ENDING), (0, 2), LETTERS, max_tokens=3, potential=potential)
    solution = target.solve()
    exact = law(solution, target.model.tokenizer.decode, solution.posterior)
    prior = law(solution, target.model.tokenizer.decode, np.exp(solution.log_prior))
    assert max(abs(exact[k] - prior[k]) for k in exact) > 0.1  # it matters
    fields = target.fields() | {"n": 50, "particles": 400, "twist": {"type": "factor"},
                                "resampling": {"scheme": scheme}}
    check_frequencies(draw(letters, fields, 80), exact)


def test_greedy(letters, reference):
    """The likeliest token each time."""
    model, ids = reference(**ENDING), [0, 2]
    tokens = ids
    while len(tokens) < 8 and tokens[-1] != 1:
        tokens = [*tokens, int(np.argmax(model.next_logits([tuple(tokens)])[0]))]
    answer = letters.client().post_ok("/v1/completions", {"prompt": ids, "max_tokens": 6, "temperature": 0,
                                                          "n": 3})
    assert {c["text"] for c in answer["choices"]} == {model.tokenizer.decode(tokens[2:])}


def test_alone_and_among_many(words):
    fields = {"prompt": ["the man", "of"], "n": 3, "max_tokens": 16, "seed": 7, "logprobs": 2, "particles": 8,
              "potential": {"type": "lexicon", "bias": {"#270": 3.0}},
              "resampling": {"ess_threshold": 0.9}, "twist": {"type": "factor"}}

    def choices(_=None):
        return words.client().post_ok("/v1/completions", fields)["choices"]

    alone, stop = choices(), threading.Event()

    def others(seed):
        while not stop.is_set():
            words.client().post_ok("/v1/completions", {"prompt": "all", "n": 5, "seed": seed, "logprobs": 1})

    threads = [threading.Thread(target=others, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    try:
        assert all(choices() == alone for _ in range(5))
    finally:
        stop.set()
        for t in threads:
            t.join()


# --------------------------------------------------------------------------- potentials

def test_potential_through_extra_body(complete):
    extra = {"potential": {"type": "contains", "text": "a"}, "particles": 64}
    answer = complete(n=5, extra_body=extra)
    assert all("a" in t for t in texts(answer))
    got, reasons, _ = streamed(complete(n=5, extra_body=extra, stream=True))
    assert got == texts(answer) and reasons == [c.finish_reason for c in answer.choices]


@pytest.mark.parametrize("stream", [False, True])
def test_dead_population(complete, stream):
    extra = {"potential": {"type": "contains", "text": "never to be seen"}, "particles": 4}
    with pytest.raises(openai.APIError, match="every one of the 4 particles") as caught:
        list(complete(extra_body=extra, stream=stream))
    if not stream:
        assert caught.value.status_code == 400 and caught.value.param == "potential"


# --------------------------------------------------------------------------- refusals, ends

def test_errors_are_the_packages_own(complete, words, serve):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(presence_penalty=1.0)
    assert caught.value.param == "presence_penalty" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        complete(model="another")
    with pytest.raises(openai.BadRequestError, match="prompt"):
        complete([])
    keyed = serve("--api-key", "secret", **ENDING)
    with pytest.raises(openai.AuthenticationError):
        client(keyed).completions.create(model="x", prompt="a")


def test_busy_is_retried(fresh_stub):
    """One runs, one waits, the third is told to come again, and does."""
    with fresh_stub("--max-queue", "1", STUB_RUNNING="1") as server:
        name = client(server).models.list().data[0].id
        long = {"model": name, "prompt": "us=100000", "max_tokens": 12}
        wires = [Wire(server).send(post("/v1/completions", long | {"stream": True}))]
        wait_until(lambda: metric(server, "clotho_requests_running") == 1)
        wires.append(Wire(server).send(post("/v1/completions", long | {"stream": True})))
        wait_until(lambda: metric(server, "clotho_requests_waiting") == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            client(server).completions.create(model=name, prompt="")
        assert caught.value.response.headers["retry-after"].isdigit()
        answer = client(server, max_retries=8).completions.create(model=name, prompt="", max_tokens=3)
        assert answer.choices[0].text == "xxx"
        for wire in wires:
            wire.reset()


@pytest.mark.parametrize("stream", [False, True])
def test_client_leaves(stub, stream):
    server = stub()
    before = metric(server, "clotho_jobs_cancelled_total")
    wire = Wire(server).send(post("/v1/completions", {"prompt": "us=10000", "max_tokens": 4000,
                                                      "stream": stream}))
    wait_until(lambda: metric(server, "clotho_requests_running") == 1)
    wire.reset()
    wait_until(lambda: metric(server, "clotho_jobs_cancelled_total") == before + 1)


def test_leaving_frees_all_prompts(words):
    body = {"prompt": ["the", "man", "of"], "n": 40, "max_tokens": 120, "ignore_eos": True, "stream": True}
    with Wire(words) as wire:
        wire.send(post("/v1/completions", body)).head()
        wire.chunk()
        wire.reset()
    wait_until(lambda: metric(words, "clotho_kv_pages_used") == 0)
    wait_until(lambda: metric(words, "clotho_particles_active") == 0)


def test_an_answer_that_grows_too_large(stub):
    body = {"prompt": [""] * 16, "n": 1024, "max_tokens": 4096}
    with Wire(stub()) as wire:
        reply = wire.send(post("/v1/completions", body)).reply()
    assert reply.status == 400 and reply.json()["error"]["param"] == "stream"
    assert "64 MiB" in reply.json()["error"]["message"]


def test_error_in_a_stream(stub):
    chunks = client(stub()).completions.create(model="model0", prompt="fail=3 us=1000", stream=True,
                                               extra_body={"model": None})
    seen = []
    with pytest.raises(openai.APIError):
        for chunk in chunks:
            seen.append(chunk.choices[0].text)
    assert seen == ["x", "x"]


def test_a_stream_that_breaks_has_no_end(stub):
    with Wire(stub()) as wire:
        wire.send(post("/v1/completions", {"prompt": "vanish=3 us=1000", "stream": True}))
        wire.head()
        body = wire.rest()
    assert b"data: " in body and b"[DONE]" not in body


def test_framing(stub):
    """Each event a chunk, in order, and the stream's end."""
    with Wire(stub()) as wire:
        wire.send(post("/v1/completions", {"prompt": ["", ""], "max_tokens": 2, "stream": True}))
        reply = wire.reply()
    assert reply.headers["content-type"] == "text/event-stream"
    parts = reply.body.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    choices = [json.loads(p[6:])["choices"][0] for p in parts[:-2]]
    assert [(c["index"], c["finish_reason"]) for c in choices] == [(0, None), (1, None), (0, "length"),
                                                                   (1, "length")]
