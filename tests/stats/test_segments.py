"""Templates with several holes: infilling, conditioning and intervening against enumeration."""
import math

import numpy as np
import pytest

from support.cases import cases
from support.estimate import Estimate, repeat
from support.posterior import Problem
from support.reference import Prior
from support.shapes import ENDING, ENDLESS, EOS, SPELLINGS

PROMPT = (0, 4, 2)  # where the holes have some freedom, EOS included


def hole(name, max_tokens=2, **more):
    return {"sample": name, "max_tokens": max_tokens, **more}


TEMPLATES = {
    "infill": [hole("z"), {"observe": "ba"}],
    "two-holes": [{"text": "a"}, hole("x"), {"observe": "b"}, hole("y", 1), {"observe": "ca"}],
    "condition": [hole("z", 1), {"observe": "c"}, hole("y", 2)],
    "intervene": [hole("z", 1), {"text": "c"}, hole("y", 2)],
    "stops": [hole("z", 3, stop=["a", "dd"]), {"observe": "d"}, hole("y", 1)],
    "text-first": [{"text": "dcb"}, hole("z", 2)],
    "holes-only": [hole("x", 1), hole("y", 1), hole("z", 1)],
    "observe-first": [{"observe": "bd"}, hole("z", 2)],
}
PRIORS = {"endless": Prior(ignore_eos=True), "top_k": Prior(ignore_eos=True, top_k=5, temperature=0.8)}


@pytest.mark.parametrize("name,twist", cases(
    TEMPLATES, ["none", "factor", "potential"],
    device=lambda *case: case in {("infill", "factor"), ("stops", "potential")}))
def test_posterior_of_a_template(serve, reference, name, twist):
    potential = ({"type": "lexicon", "bias": {"a": 0.7, "d": -0.5}},
                 {"type": "contains", "text": "ac", "soft": -0.8})
    target = Problem(reference(**ENDING), PROMPT, PRIORS["endless"], segments=tuple(TEMPLATES[name]),
                     potential=potential)
    fields = target.fields() | {"particles": 128, "twist": {"type": twist}}
    Estimate(target.solve(), repeat(serve("--dtype", "f32", **ENDING), fields, 120)).check()


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_without_potentials(serve, reference, name):
    target = Problem(reference(**ENDLESS), PROMPT, segments=tuple(TEMPLATES[name]))
    fields = target.fields() | {"particles": 128}
    Estimate(target.solve(), repeat(serve("--dtype", "f32", **ENDLESS), fields, 120)).check()


@pytest.mark.parametrize("name", ["infill", "two-holes", "condition", "stops"])
def test_an_eos_ends_its_hole(serve, reference, name):
    """A hole that ends by EOS is followed by the next segment all the same."""
    target = Problem(reference(**ENDING), PROMPT, segments=tuple(TEMPLATES[name]))
    solution = target.solve()
    assert any(EOS in t.tokens[:-1] and p > 0.01 for t, p in zip(solution.texts, solution.posterior))
    fields = target.fields() | {"particles": 128}
    Estimate(solution, repeat(serve("--dtype", "f32", **ENDING), fields, 120)).check()


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_sample_reports(serve, reference, name):
    """Holes, text, log_p over the drawn tokens, log_phi with the observed ones, token by token."""
    target = Problem(reference(**SPELLINGS), PROMPT, PRIORS["top_k"], segments=tuple(TEMPLATES[name]),
                     potential=({"type": "lexicon", "bias": {"a": 0.7}, "weight": 2},))
    texts = {t.tokens: t for t in target.texts()}
    run = serve("--dtype", "f32", **SPELLINGS).client().sample(
        **target.fields(), particles=64, seed=5, logprobs=True)
    for s in run.samples:
        if s["log_weight"] is None and tuple(s["tokens"]) not in texts:
            continue  # died before its end
        t = texts[tuple(s["tokens"])]
        assert s["holes"] == dict(t.holes)
        assert s["text"] == target.model.tokenizer.decode(t.tokens)
        assert abs(s["log_p"] - t.log_p) < 1e-3
        log_phi = target.log_phi(t.tokens) + t.log_observed
        assert (s["log_phi"] is None) if log_phi == -math.inf else abs(s["log_phi"] - log_phi) < 1e-3
        for found, exact in zip(s["token_log_p"], t.token_log_p, strict=True):
            if exact is None or exact == -math.inf:
                assert found is None
            else:
                assert abs(found - exact) < 1e-3


def test_do_is_not_see(serve, reference):
    """Intervening leaves the first hole at its prior; conditioning moves it, and both answer with
    the exact marginal."""
    server, model = serve("--dtype", "f32", **ENDING), reference(**ENDING)
    marginals = {}
    for name in ("condition", "intervene"):
        target = Problem(model, PROMPT, PRIORS["endless"], segments=tuple(TEMPLATES[name]))
        runs = repeat(server, target.fields() | {"particles": 256}, 60)
        exact, found = np.zeros(6), np.zeros(6)
        solution = target.solve()
        for t, p in zip(solution.texts, solution.posterior):
            exact[t.tokens[0]] += p
        for s in (s for r in runs for s in r.samples):
            found[s["tokens"][0]] += math.exp(s["log_weight"])
        found /= found.sum()
        assert 0.5 * np.abs(found - exact).sum() < 0.02
        marginals[name] = exact
    prior = Problem(model, PROMPT, PRIORS["endless"], 1).solve().posterior
    one = [t.tokens[0] for t in Problem(model, PROMPT, PRIORS["endless"], 1).texts()]
    assert np.allclose(marginals["intervene"][one], prior)
    assert 0.5 * np.abs(marginals["condition"] - marginals["intervene"]).sum() > 0.05


def test_an_impossible_observation_kills_only_its_particles(serve, reference):
    """Top-k cuts off what is observed: those holes have weight 0, the rest is exact."""
    target = Problem(reference(**ENDING), (0, 4, 3), Prior(ignore_eos=True, top_k=2),
                     segments=(hole("z", 2), {"observe": "b"}, hole("y", 1)))
    solution = target.solve()
    assert 0 < np.isinf(solution.log_target).mean() < 1
    fields = target.fields() | {"particles": 16}
    estimate = Estimate(solution, repeat(serve("--dtype", "f32", **ENDING), fields, 400))
    estimate.check()
