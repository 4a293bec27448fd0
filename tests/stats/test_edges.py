"""Where a sampler goes wrong first: one particle, one token, no potential, the ends of texts, and
the cases whose answer has no randomness in it."""
import math

import numpy as np
import pytest

from support.estimate import Estimate, log_weight, repeat
from support.posterior import Problem
from support.reference import Prior, log_sum_exp
from support.shapes import A, AB, ENDING, EOS, SPELLINGS, TIED

LEXICON = {"type": "lexicon", "bias": {"a": 1.2, "b": -0.8, f"#{EOS}": 0.6}, "weight": 0.9}
FLOAT32 = 1e-3  # of a log-probability summed over a short text


@pytest.fixture
def server(serve):
    return serve("--dtype", "f32", **ENDING)


@pytest.fixture
def model(reference):
    return reference(**ENDING)


# --------------------------------------------------------------------------------- no potential

@pytest.mark.parametrize("proposal", [{}, {"proposal": "base"}, {"twist": {"type": "none"}}])
@pytest.mark.parametrize("threshold", [0, 0.5, 1])
def test_without_a_potential_nothing_is_weighed(server, proposal, threshold):
    """phi = 1: log Z is 0, exactly, and all weights are the same."""
    run = server.client().sample(prompt=[0, 2], max_tokens=5, particles=37, seed=3, **proposal,
                                 resampling={"scheme": "systematic", "ess_threshold": threshold})
    assert run.log_z == 0
    assert {s["log_weight"] for s in run.samples} == {0}
    assert all(abs(s["weight"] - 1 / 37) < 1e-12 for s in run.samples)
    assert abs(run.done["ess"] - 37) < 1e-9
    assert all(abs(e["log_z"]) < 1e-12 and abs(e["ess"] - 37) < 1e-6 for e in run.steps)


def test_equal_weights_do_not_resample(server):
    run = server.client().sample(prompt=[0, 2], max_tokens=5, particles=64, seed=3)
    assert not run.resamples


@pytest.mark.parametrize("prior", [Prior(), Prior(temperature=0.5, top_k=3), Prior(top_p=0.7),
                                   Prior(min_tokens=3), Prior(ignore_eos=True)], ids=range(5))
def test_plain_sampling_follows_the_prior(server, model, prior):
    target = Problem(model, (0, 3), prior)
    runs = repeat(server, target.fields() | {"particles": 256}, 100)
    Estimate(target.solve(), runs).check()


# --------------------------------------------------------------------------------- one particle

def twisted_log_weight(target, bias, tokens):
    """log sigma~(s)/q(s) for q the twist-induced proposal: the sum of log sum_v p0(v) psi(v)."""
    weight = 0.0
    for i in range(len(tokens)):
        row = target._log_p0([tokens[:i]], [i])[0]
        weight += log_sum_exp(row + [bias.get(v, 0.0) for v in range(len(row))])
    return weight


@pytest.mark.parametrize("threshold", [0, 0.5, 1])
def test_one_particle_is_importance_sampling(server, model, threshold):
    bias = {2: 1.2 * 0.9, 3: -0.8 * 0.9, EOS: 0.6 * 0.9}
    contains = {"type": "contains", "text": "d", "soft": -1.3}
    target = Problem(model, (0, 2), potential=(LEXICON, contains))
    resampling = {"scheme": "systematic", "ess_threshold": threshold}
    for seed in range(40):
        fields = target.fields() | {"particles": 1, "seed": seed, "resampling": resampling}
        sample = server.client().sample(**fields).samples[0]
        assert abs(sample["log_weight"] - target.log_phi(sample["tokens"])) < FLOAT32
        assert abs(sample["log_weight"] - sample["log_phi"]) < 1e-9
        sample = server.client().sample(**fields, twist={"type": "factor"}).samples[0]
        rest = target._one(contains, tuple(sample["tokens"]))
        exact = twisted_log_weight(target, bias, tuple(sample["tokens"])) + rest
        assert abs(sample["log_weight"] - exact) < FLOAT32


# ------------------------------------------------------------------------------- zero variance

@pytest.mark.parametrize("particles", [1, 2, 17, 256])
@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial", "residual"])
def test_an_exact_twist_has_no_variance(server, model, particles, scheme):
    """Over one token the lexicon's factors are the optimal twist: every weight is log Z."""
    target = Problem(model, (0, 2), max_tokens=1, potential=(LEXICON,))
    log_z = target.solve().log_z
    for seed in range(5):
        run = server.client().sample(**target.fields(), twist={"type": "factor"}, seed=seed,
                                     particles=particles,
                                     resampling={"scheme": scheme, "ess_threshold": 0.99})
        weights = np.array([s["log_weight"] for s in run.samples])
        assert np.ptp(weights) < 1e-5 and abs(run.log_z - log_z) < FLOAT32
        assert abs(run.log_z - weights[0]) < 1e-5 and abs(run.done["ess"] - particles) < 1e-3
        assert not run.resamples


def test_a_lexicon_on_every_token_is_a_constant(server, model):
    """The same bias on all tokens of a text of fixed length: weights are equal to the last bit of
    the proposal, with and without the twist."""
    bias = {f"#{i}": 0.75 for i in range(6)}
    target = Problem(model, (0, 2), Prior(ignore_eos=True), potential=({"type": "lexicon", "bias": bias},))
    for twist in ("none", "factor", "potential"):
        run = server.client().sample(**target.fields(), twist={"type": twist}, particles=32, seed=5)
        assert abs(run.log_z - 4 * 0.75) < 1e-4
        assert np.ptp([s["log_weight"] for s in run.samples]) < 1e-4
        assert not run.resamples


# ------------------------------------------------------------------------------ ends of a text

def test_eos_and_length_end_a_text(server):
    run = server.client().sample(prompt=[0, 2], max_tokens=4, particles=400, seed=1)
    for s in run.samples:
        assert EOS not in s["tokens"][:-1] and 1 <= len(s["tokens"]) <= 4
        ended = s["tokens"][-1] == EOS
        assert s["finish_reason"] == ("stop" if ended else "length")
        assert ended or len(s["tokens"]) == 4
    assert {s["finish_reason"] for s in run.samples} == {"stop", "length"}
    assert run.done["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("shape,stop", [(ENDING, ["ba"]), (ENDING, ["a", "dc"]), (SPELLINGS, ["b"]),
                                        (SPELLINGS, ["ab", "ca"]), (TIED, ["ddd", "c"])],
                         ids=["ba", "a,dc", "b", "ab,ca", "ddd,c"])
@pytest.mark.parametrize("twist", ["none", "factor"])
def test_stop_strings(serve, reference, shape, stop, twist):
    """A text ends right after it first contains one, also in the middle of a token."""
    target = Problem(reference(**shape), (0, 2), stop=tuple(stop), potential=(LEXICON,))
    runs = repeat(serve("--dtype", "f32", **shape),
                  target.fields() | {"particles": 128, "twist": {"type": twist}}, 120)
    Estimate(target.solve(), runs).check()
    for s in runs[0].samples:
        hit = any(x in s["text"] for x in stop) or s["tokens"][-1] == EOS
        assert s["finish_reason"] == ("stop" if hit else "length")


def test_a_stop_string_inside_a_token(serve):
    run = serve("--dtype", "f32", **SPELLINGS).client().sample(
        prompt=[0, 2], max_tokens=3, stop=["a"], particles=300, seed=2, ignore_eos=True)
    ended = [s for s in run.samples if AB in s["tokens"]]
    assert ended and all(s["tokens"][-1] == AB and s["finish_reason"] == "stop" for s in ended)
    assert all(A not in s["tokens"][:-1] for s in run.samples)


@pytest.mark.parametrize("min_tokens", [0, 1, 2, 4])
def test_min_tokens(server, min_tokens):
    run = server.client().sample(prompt=[0, 2], max_tokens=4, min_tokens=min_tokens, particles=300,
                                 seed=4)
    ended = [len(s["tokens"]) for s in run.samples if s["finish_reason"] == "stop"]
    assert min(ended) == min_tokens + 1 if min_tokens < 4 else not ended


def test_ignore_eos(server):
    ignored = server.client().sample(prompt=[0, 2], max_tokens=4, ignore_eos=True, particles=300, seed=4)
    assert all(len(s["tokens"]) == 4 and EOS not in s["tokens"] for s in ignored.samples)


@pytest.mark.parametrize("twist", ["none", "factor", "potential"])
def test_a_single_token(server, model, twist):
    target = Problem(model, (0, 4), max_tokens=1,
                     potential=(LEXICON, {"type": "continuation", "text": "b"}))
    runs = repeat(server, target.fields() | {"particles": 64, "twist": {"type": twist}}, 150)
    Estimate(target.solve(), runs).check()


def test_long_prompts_and_texts_cross_pages(server, model):
    """Prompt lengths around the multiples of a KV page, texts over several: log_p still exact."""
    rng = np.random.default_rng(1)
    for n in (1, 15, 16, 17, 31, 32, 33, 60):
        prompt = [0, *map(int, rng.integers(2, 6, n - 1))]
        run = server.client().sample(prompt=prompt, max_tokens=37, ignore_eos=True, particles=9, seed=n,
                                     potential=LEXICON, twist={"type": "factor"},
                                     resampling={"scheme": "systematic", "ess_threshold": 1})
        target = Problem(model, tuple(prompt), Prior(ignore_eos=True))
        for s in run.samples:
            exact = sum(target.forced((), s["tokens"]))
            assert abs(s["log_p"] - exact) < 37 * FLOAT32


def test_greedy(server, model):
    """Temperature 0 is top-k 1: every particle writes the most likely text."""
    best = Problem(model, (0, 2), Prior(top_k=1)).texts()
    assert len(best) == 1
    run = server.client().sample(prompt=[0, 2], max_tokens=4, temperature=0, particles=5, seed=9)
    assert {tuple(s["tokens"]) for s in run.samples} == {best[0].tokens}
    assert all(abs(s["log_p"]) < 1e-9 for s in run.samples)


def test_contradicting_bans_kill(server):
    """Nothing is left to draw: the population dies, and says so."""
    run = server.client().sample(prompt=[0, 2], max_tokens=3, particles=4, seed=1, ignore_eos=True,
                                 potential={"type": "lexicon", "bias": {f"#{i}": -1e4 for i in range(6)}},
                                 twist={"type": "factor"})
    assert all(math.isfinite(log_weight(s)) for s in run.samples)  # unlikely is not impossible
    assert run.log_z < -2e4
