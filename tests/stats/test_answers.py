"""What one answer says about itself: the events agree with each other, with /v1/score and with the
float64 model."""
import math

import numpy as np
import pytest

from support.estimate import log_weight
from support.posterior import Problem
from support.reference import Prior, log_sum_exp
from support.shapes import ENDING, ENDLESS

POTENTIAL = [{"type": "lexicon", "bias": {"a": 1.0, "c": -1.0}},
             {"type": "regex", "pattern": ".*b.*", "soft": -2.0}]
REQUESTS = {
    "plain": {},
    "base": dict(potential=POTENTIAL),
    "factor": dict(potential=POTENTIAL, twist={"type": "factor"}),
    "factor-base": dict(potential=POTENTIAL, twist={"type": "factor"}, proposal="base"),
    "potential": dict(potential=POTENTIAL, twist={"type": "potential", "every": 1, "power": 1}),
    "always": dict(potential=POTENTIAL, twist={"type": "factor"},
                   resampling={"scheme": "multinomial", "ess_threshold": 1}),
    "hard": dict(potential=[{"type": "contains", "text": "ab"}]),
    "prior": dict(potential=POTENTIAL, temperature=0.7, top_k=4, top_p=0.95, min_tokens=2),
}
EVENTS = ["step", "resample", "sample", "particles"]


@pytest.fixture(params=REQUESTS)
def fields(request):
    return dict(prompt=[0, 2], max_tokens=6, particles=24, seed=17, logprobs=True) | REQUESTS[request.param]


@pytest.fixture
def run(serve, fields):
    return serve("--dtype", "f32", **ENDING).client().sample(**fields, events=EVENTS)


def test_order_of_events(run, fields):
    kinds = [e["event"] for e in run.events]
    assert kinds[0] == "start" and kinds[-1] == "done"
    first = kinds.index("sample")
    assert kinds[first:-1] == ["sample"] * 24
    assert set(kinds[1:first]) <= {"step", "resample"}
    assert [s["index"] for s in run.samples] == list(range(24))
    assert [e["step"] for e in run.steps] == list(range(1, len(run.steps) + 1))
    assert run.start["particles"] == 24 and run.start["seed"] == 17 and run.start["prompt_tokens"] == 2
    assert run.start["id"].startswith("smp-") and run.start["model"]


def test_weights_are_normalised(run):
    weights = np.array([log_weight(s) for s in run.samples])
    if run.done["log_z"] is None:
        assert np.all(np.isinf(weights))
        return
    assert abs(run.log_z - (log_sum_exp(weights) - math.log(len(weights)))) < 1e-9
    normal = np.exp(weights - log_sum_exp(weights))
    np.testing.assert_allclose([s["weight"] for s in run.samples], normal, atol=1e-9)
    assert abs(run.done["ess"] - 1 / (normal ** 2).sum()) < 1e-6 * len(weights)


def test_probabilities_agree(serve, reference, run, fields):
    prior = Prior(**{k: v for k, v in fields.items() if k in Prior().__dict__})
    target = Problem(reference(**ENDING), (0, 2), prior, 6, potential=tuple(fields.get("potential", ())))
    shared = {k: v for k, v in fields.items() if k in ("prompt", "potential", "temperature", "top_k",
                                                       "top_p", "min_tokens")}
    scores = serve("--dtype", "f32", **ENDING).client().score(
        **shared, completions=[s["tokens"] for s in run.samples], per_token=True)
    for s, score in zip(run.samples, scores, strict=True):
        assert score["tokens"] == s["tokens"]
        assert len(s["token_log_p"]) == len(s["tokens"])
        assert abs(sum(s["token_log_p"]) - s["log_p"]) < 1e-9
        # The cache that grew token by token and the one that was filled at once hold the same floats.
        assert score["log_p"] == s["log_p"] and score["token_log_p"] == s["token_log_p"]
        if "potential" in fields:
            assert score["log_phi"] == s["log_phi"]
        exact = target.forced((), s["tokens"])
        np.testing.assert_allclose(s["token_log_p"], exact, atol=1e-3)
        assert s["text"] == target.model.tokenizer.decode(s["tokens"])


def test_steps_make_sense(run):
    for e in run.steps:
        assert 0 <= e["active"] <= 24 and 0 <= e["ess"] <= 24 + 1e-9
        assert e["log_z"] is None or math.isfinite(e["log_z"])
        assert len(e["texts"]) == 24
    for e in run.resamples:
        ancestors = e["ancestors"]
        assert len(ancestors) == 24 and all(0 <= a < 24 for a in ancestors)
        assert all(ancestors[a] == a for a in ancestors), "a survivor keeps its slot"
        assert 0 < e["ess"] <= 24 + 1e-9


def test_threshold_one_always_resamples(run, fields):
    if fields.get("resampling", {}).get("ess_threshold") != 1:
        assert all(e["ess"] < 12 for e in run.resamples)
        return
    assert len(run.resamples) >= len(run.steps) - 1


def test_the_genealogy_explains_the_texts(run):
    """Each particle's text grows from its ancestor's, and the last texts are the samples'."""
    texts = [""] * 24
    for e in run.events:
        if e["event"] == "resample":
            texts = [texts[a] for a in e["ancestors"]]
        elif e["event"] == "step":
            assert all(new.startswith(old) for old, new in zip(texts, e["texts"], strict=True))
            texts = e["texts"]
    assert [s["text"] for s in run.samples] == texts


def test_clones_part_at_once(serve):
    """Where the weight is known before the draw, clones draw their next token each for itself."""
    client = serve("--dtype", "f32", **ENDLESS).client()
    lexicon = {"type": "lexicon", "bias": {"a": 1.5, "c": -1.5}}
    same = clones = 0
    for seed in range(20):
        run = client.sample(prompt=[0, 2], max_tokens=8, particles=32, seed=seed, potential=lexicon,
                            twist={"type": "factor"}, events=EVENTS, temperature=1.5,
                            resampling={"scheme": "multinomial", "ess_threshold": 1})
        texts = {e["step"]: e["texts"] for e in run.steps}
        for e in run.resamples:
            pairs = [(texts[e["step"]][i], texts[e["step"]][a])
                     for i, a in enumerate(e["ancestors"]) if i != a]
            same += sum(child == parent for child, parent in pairs)
            clones += len(pairs)
    assert clones > 500 and same < 0.8 * clones


def test_usage(run):
    usage = run.done["usage"]
    assert usage["prompt_tokens"] == 2
    assert usage["total_tokens"] == 2 + usage["completion_tokens"]
    assert usage["completion_tokens"] >= max(len(s["tokens"]) for s in run.samples)
    assert all(v >= 0 for v in run.done["timings"].values())
    assert set(run.done["timings"]) == {"queue_seconds", "prompt_seconds", "sample_seconds"}


def test_events_are_optional(serve, fields):
    client = serve("--dtype", "f32", **ENDING).client()
    whole = client.sample(**fields)
    assert {e["event"] for e in client.sample(**fields, events=[]).events} == {"start", "done"}
    only = client.sample(**fields, events=["sample"])
    assert {e["event"] for e in only.events} == {"start", "sample", "done"}
    assert only.sample_lines() == whole.sample_lines()
    assert all("texts" not in e for e in whole.steps)
