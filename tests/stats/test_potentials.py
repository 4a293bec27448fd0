"""Every potential, alone and together, hard and soft: the posterior it defines, and what a sample
reports of it."""
import math

import pytest

from support.estimate import Estimate, log_weight, repeat
from support.posterior import Problem
from support.reference import Prior
from support.shapes import A, B, C, ENDING, ENDLESS, EOS, SPELLINGS

LEXICON = {"type": "lexicon", "bias": {"a": 0.8, "c": -0.7, f"#{EOS}": -0.4}}
CONTINUATION = {"type": "continuation", "text": "ca"}
CONTAINS = {"type": "contains", "text": "ab"}
REGEX = {"type": "regex", "pattern": "(a|b)*c?[abcd]"}
JUDGE = {"type": "judge", "template": "d{prompt}c{text}a", "answer": "b"}
CHOICE = JUDGE | {"answer": "ab", "against": ["cd", "b"]}
TOKENS = {"type": "tokens", "ids": [[A], [B, C]], "log_phi": -1.5}

SINGLE = {
    "lexicon": LEXICON,
    "continuation": CONTINUATION,
    "contains-soft": CONTAINS | {"soft": -1.2},
    "contains-hard": CONTAINS | {"text": "a"},
    "regex-soft": REGEX | {"soft": -2.0},
    "regex-hard": REGEX,
    "judge": JUDGE,
    "choice": CHOICE,
    "tokens": TOKENS,
    "tokens-banned": TOKENS | {"log_phi": None},
}
SEVERAL = {
    "lexicon+regex": [LEXICON | {"weight": 0.5}, REGEX | {"soft": -2.0, "weight": 0.7}],
    "judge+contains": [CHOICE | {"weight": 0.5}, CONTAINS | {"text": "a"}],
    "all": [LEXICON, CONTINUATION | {"weight": 0.3}, CONTAINS | {"soft": -0.5}, JUDGE | {"weight": 0.4},
            REGEX | {"soft": -0.5, "weight": 2}, TOKENS | {"weight": 0.5}],
    "negative": [LEXICON | {"weight": -1.0}, JUDGE | {"weight": -0.3}],
    "weight-0": [CONTAINS | {"weight": 0.0}, LEXICON],
    "two-lexicons": [LEXICON, {"type": "lexicon", "bias": {"d": 0.5, "a": -0.3}, "weight": 2}],
}
TARGETS = {k: [v] for k, v in SINGLE.items()} | SEVERAL


def known(potential):
    """For the reference: a log_phi of null is -inf."""
    return tuple(p | {"log_phi": -math.inf} if p.get("log_phi", 0) is None else p for p in potential)


def twists(potential):
    """Factors come from a lexicon."""
    return ["none", "potential"] + ["factor"] * any(p["type"] == "lexicon" for p in potential)


@pytest.mark.parametrize("name,twist", [(n, t) for n, p in TARGETS.items() for t in twists(p)])
def test_posterior(serve, reference, name, twist):
    potential = TARGETS[name]
    target = Problem(reference(**ENDING), (0, 2), potential=known(potential))
    fields = target.fields() | {"potential": potential, "particles": 64, "twist": {"type": twist}}
    runs = repeat(serve("--dtype", "f32", **ENDING), fields, 160)
    Estimate(target.solve(), runs).check(total_variation=0.1)


@pytest.mark.parametrize("name", TARGETS)
def test_reported_log_phi(serve, reference, name):
    """log_phi of each sample and of /v1/score is the float64 one."""
    potential = TARGETS[name]
    target = Problem(reference(**ENDING), (0, 2), potential=known(potential))
    client = serve("--dtype", "f32", **ENDING).client()
    fields = target.fields() | {"potential": potential}
    run = client.sample(**fields, particles=128, seed=11)
    scored = client.score(prompt=fields["prompt"], potential=potential,
                          completions=[s["tokens"] for s in run.samples])
    for sample, score in zip(run.samples, scored):
        exact = target.log_phi(sample["tokens"])
        for found in (sample["log_phi"], score["log_phi"]):
            assert found is None if exact == -math.inf else abs(found - exact) < 1e-3


@pytest.mark.parametrize("prior", [Prior(temperature=0.6), Prior(min_tokens=9), Prior(ignore_eos=True),
                                   Prior(temperature=1.3, top_k=5, min_tokens=2)], ids=range(4))
def test_what_the_model_is_asked_is_asked_by_the_prior(serve, reference, prior):
    """Continuations and judges go by p0 too; min_tokens counts on behind a text, and not in a
    judge's question, which is another text."""
    client = serve("--dtype", "f32", **ENDING).client()
    for p in (CONTINUATION, JUDGE, CHOICE):
        target = Problem(reference(**ENDING), (0, 2), prior, 10, potential=(p,))
        texts = [[2], [3, 4], [5, 2, 3], [4, 4, 4, 1]]
        scored = client.score(prompt=[0, 2], completions=texts, potential=p, **prior.fields())
        for text, score in zip(texts, scored, strict=True):
            exact = target.log_phi(text)
            assert score["log_phi"] is None if exact == -math.inf else abs(score["log_phi"] - exact) < 1e-3
        for s in client.sample(**target.fields(), particles=32, seed=6).samples:
            exact = target.log_phi(s["tokens"])
            assert s["log_phi"] is None if exact == -math.inf else abs(s["log_phi"] - exact) < 1e-3


def test_text_may_cross_tokens(serve, reference):
    """"ab" spelt by one token or by two is the same text."""
    target = Problem(reference(**SPELLINGS), (0, 2), max_tokens=3, potential=(CONTAINS,))
    solution = target.solve()
    spelt = {t.tokens for t, p in zip(solution.texts, solution.posterior) if p > 0}
    assert any(6 in t for t in spelt) and any(6 not in t for t in spelt)
    fields = target.fields() | {"particles": 256}
    Estimate(solution, repeat(serve("--dtype", "f32", **SPELLINGS), fields, 120)).check()


@pytest.mark.parametrize("twist", ["none", "potential"])
def test_dead_runs_count_as_zero(serve, reference, twist):
    """A rare event and few particles: most runs die. They say so, and the mean is still Z. A
    partial text that does not match yet may still come to, so the twist must not kill it."""
    pattern = {"type": "regex", "pattern": "(.*)ba|(.*)db"}
    target = Problem(reference(**ENDLESS), (0, 2), Prior(ignore_eos=True), potential=(pattern,))
    solution = target.solve()
    fields = target.fields() | {"particles": 3, "twist": {"type": twist}}
    runs = repeat(serve("--dtype", "f32", **ENDLESS), fields, 2500)
    dead = [r for r in runs if r.done["log_z"] is None]
    assert 0.2 < len(dead) / len(runs) < 0.98
    for run in dead:
        assert all(s["log_weight"] is None and s["weight"] == 0 for s in run.samples)
        assert len(run.samples) == 3 and run.done["ess"] == 0
    for run in runs:
        assert all((log_weight(s) > -math.inf) == (s["weight"] > 0) for s in run.samples)
    estimate = Estimate(solution, runs)
    estimate.check_z()
    estimate.check_texts()


def test_certain_death(serve, reference):
    impossible = {"type": "contains", "text": "never"}
    server = serve("--dtype", "f32", **ENDING)
    for twist in ("none", "potential"):
        run = server.client().sample(prompt=[0, 2], max_tokens=4, particles=5, seed=1,
                                     potential=impossible, twist={"type": twist})
        assert run.done["log_z"] is None and run.done["ess"] == 0
        assert [s["weight"] for s in run.samples] == [0] * 5
        assert all(s["log_weight"] is None and s["log_phi"] is None for s in run.samples)
        assert all(s["log_p"] is not None for s in run.samples)
