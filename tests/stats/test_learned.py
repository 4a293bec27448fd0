"""Twists learned over HTTP, judged by enumeration: a rare target, all five methods, texts that end,
a family of endings. What is learned is read from its file and evaluated in float64."""
import numpy as np
import pytest

from support import rare
from support.bounds import bound
from support.estimate import Estimate, repeat
from support.posterior import Problem
from support.reference import Prior, log_sum_exp
from support.shapes import ENDING, ENDLESS
from support.twist import Induced, Twist

NEVER, ALWAYS = {"ess_threshold": 0}, {"ess_threshold": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("learned")


def learned(name):
    return {"type": "learned", "name": name}


# ---------------------------------------------------------------------------------- a rare target

@pytest.fixture(scope="module")
def rare_server(serve, folder):
    return serve("--dtype", "f32", "--twist-dir", str(folder), **rare.SHAPE)


@pytest.fixture(scope="module")
def rare_twist(rare_server, reference, folder):
    """rare_twist(soft) -> the problem and what CTL has made of it, under the name that is returned."""
    made = {}

    def learn(soft):
        if soft not in made:
            target, name = rare.problem(reference(**rare.SHAPE), soft), f"rare{len(made)}"
            found, _ = rare.learn(rare_server, target, folder, name, method="ctl",
                                  targets=rare.positives(target))
            made[soft] = target, found, name
        return made[soft]

    return learn


@pytest.mark.parametrize("soft,near", [(None, 0.1), (rare.SOFT, 0.2)], ids=["hard", "soft"])
def test_a_rare_target(rare_server, rare_twist, soft, near):
    """Importance sampling with the proposal alone; resampled by, a twist is at the mercy of what it
    says of texts that it has never met, see the next test."""
    target, found, name = rare_twist(soft)
    assert target.solve().log_z < np.log(1e-3)
    assert Induced(target).kl_from_target() > 7
    assert found.kl_from_target() < near
    bounds = bound(rare_server, target, 400, particles=rare.K, twist=learned(name), resampling=NEVER)
    bounds.check()
    gap, error = bounds.gap()
    assert gap + 3 * error < 0.05
    assert abs(bounds.answers[0]["gap"] - gap) < 0.05


def test_the_base_proposal_on_it(rare_server, reference):
    """Hard, most runs never hit, and the gap is infinite. Soft, it has a number."""
    hard, soft = (rare.problem(reference(**rare.SHAPE), s) for s in (None, rare.SOFT))
    bounds = bound(rare_server, hard, 200, particles=rare.K)
    assert np.isneginf(bounds.log_lower).mean() > 0.9 and bounds.answers[0]["gap"] is None
    assert bound(rare_server, soft, 200, particles=rare.K).answers[0]["gap"] > 2


def test_resampled_by_it_stays_unbiased(rare_server, rare_twist):
    """Now and then a particle strays to where neither the target nor the proposal has been while it
    was learned, and what psi makes of that may call all others there, to their death. Such runs are
    part of the expectation."""
    target, _, name = rare_twist(None)
    fields = target.fields() | {"particles": rare.K, "twist": learned(name), "resampling": ALWAYS}
    estimate = Estimate(target.solve(), repeat(rare_server, fields, 300))
    estimate.check_z()
    estimate.check_texts()


def test_it_needs_no_exact_draws(rare_server, reference, folder):
    """Its own draws, weighted, find the target from nothing, if not as closely."""
    target = rare.problem(reference(**rare.SHAPE), rare.SOFT)
    found, answer = rare.learn(rare_server, target, folder, "alone", method="ctl")
    assert found.kl_from_target() < 1 < Induced(target).kl_from_target() - 6
    assert abs(answer["log_z"] - target.solve().log_z) < 0.5


def test_positives_by_rejection(rare_server, reference, folder):
    """Of a target that the server's own draws hit often enough."""
    target = Problem(reference(**rare.SHAPE), rare.PROMPT, rare.PRIOR, max_tokens=5,
                     potential=({"type": "contains", "text": "bcd"},))
    found, _ = rare.learn(rare_server, target, folder, "rejection", updates=500,
                          targets={"source": "rejection", "max_draws": 30000})
    assert Induced(target).kl_from_target() > 3 and found.kl_from_target() < 0.15


def test_scores_are_those_of_the_file(rare_server, rare_twist, folder):
    target, _, name = rare_twist(None)
    twist, texts = Twist(folder / f"{name}.safetensors"), [[2, 3, 4, 5, 2], [4, 4, 4, 4, 4], [5]]
    scores = rare_server.client().score(prompt=list(rare.PROMPT), completions=texts, twist=learned(name),
                                        **rare.PRIOR.fields())
    for text, score in zip(texts, scores, strict=True):
        np.testing.assert_allclose(score["log_twist"], log_twist(target, twist, text), atol=1e-3)


def log_twist(target, twist, text):
    """log psi after each token."""
    hidden = target.model.next_hidden([target.prompt + tuple(text[:n]) for n in range(len(text))])
    return [twist.log_psi(h[None], n)[0, text[n]] for n, h in enumerate(hidden)]


# ------------------------------------------------------------------------------------ all methods

# method: what it divides both divergences by, at least. rl is slow: it learns from its own guesses.
METHODS = {"ctl": 4, "rl": 1.5, "sixo": 4, "fudge": 4, "dpg": 4}
EXACT = [(method, True) for method in METHODS if method != "fudge"]  # that one takes none
OWN = [(method, False) for method in METHODS]


@pytest.mark.parametrize("method,exact", EXACT + OWN)
def test_every_method_comes_closer(rare_server, reference, folder, method, exact):
    """On a target that draws of the prior hit now and then, as fudge has to."""
    target = Problem(reference(**rare.SHAPE), rare.PROMPT, rare.PRIOR, max_tokens=5,
                     potential=({"type": "contains", "text": "bc", "soft": -4.0},))
    targets = {"targets": rare.positives(target)} if exact else {}
    found, _ = rare.learn(rare_server, target, folder, method, method=method, updates=300, particles=64,
                          learning_rate=0.01, **targets)
    base, divisor = Induced(target), METHODS[method]
    assert found.kl_from_target() < base.kl_from_target() / divisor
    assert found.kl_to_target() < base.kl_to_target() / divisor
    bounds = bound(rare_server, target, 300, particles=8, twist=learned(method), resampling=ALWAYS)
    bounds.check()


def test_dpg_is_never_resampled_by(rare_server, reference, folder):
    target = rare.problem(reference(**rare.SHAPE), rare.SOFT)
    rare.learn(rare_server, target, folder, "proposal", method="dpg", updates=2)
    fields = target.fields() | {"particles": 8, "resampling": ALWAYS, "seed": 1}
    client = rare_server.client()
    assert client.sample(**fields, twist={"type": "potential"}).resamples
    assert not client.sample(**fields, twist=learned("proposal")).resamples


# -------------------------------------------------------------------------------- texts that end

SCORED = ({"type": "lexicon", "bias": {"a": 0.5, "b": -0.5, "#1": 0.5}},
          {"type": "contains", "text": "cd", "soft": -5.0})


@pytest.fixture(scope="module")
def ending(serve, reference, folder):
    """A server, and a problem where half of the texts end by EOS, with the twist "ending" learned."""
    server = serve("--dtype", "f32", "--twist-dir", str(folder), **ENDING)
    target = Problem(reference(**ENDING), (0, 2), max_tokens=5, potential=SCORED)
    rare.learn(server, target, folder, "ending", updates=300, learning_rate=0.01)
    return server, target


def test_calibration_brings_all_lengths_to_one_scale(ending, folder):
    """The live texts' share of what psi says is their share of Z, for every t. Without calibration
    their scale is what it was by chance: contrasts within a t tell nothing of it."""
    _, target = ending
    twist = Twist(folder / "ending.safetensors")
    assert np.abs(log_live_shares(target, twist)).max() < 0.3
    twist.calibration[:] = 0
    assert np.abs(log_live_shares(target, twist)).max() > 1


def log_live_shares(target, twist):
    """log( sum over live s_1:t of p0 psi_t / sum over texts longer than t of p0 phi ), t = 1 .. T; of
    t = T, over the texts that get there."""
    solution, length, out = target.solve(), target.max_tokens, []
    for t in range(1, length + 1):
        long = [(text, x) for text, x in zip(solution.texts, solution.log_target)
                if len(text.tokens) > t or len(text.tokens) == length]
        live = {text.tokens[:t]: sum(text.token_log_p[:t]) for text, _ in long}
        hidden = target.model.next_hidden([target.prompt + s[:-1] for s in live])
        log_psi = twist.log_psi(np.array(hidden), t - 1)[np.arange(len(live)), [s[-1] for s in live]]
        out.append(log_sum_exp(list(live.values()) + log_psi) - log_sum_exp([x for _, x in long]))
    return np.array(out)


@pytest.mark.parametrize("particles", [2, 32])
def test_texts_that_end_stay_unbiased(ending, particles):
    server, target = ending
    fields = target.fields() | {"particles": particles, "twist": learned("ending"),
                                "resampling": ALWAYS}
    estimate = Estimate(target.solve(), repeat(server, fields, 6000 // (particles + 8)))
    estimate.check_z()
    estimate.check_texts()


def test_texts_that_end_are_learned(ending, folder):
    server, target = ending
    found = Induced(target, Twist(folder / "ending.safetensors"))
    assert found.kl_from_target() < Induced(target).kl_from_target() / 4
    bound(server, target, 500, particles=4, twist=learned("ending"), resampling=ALWAYS).check()


# ---------------------------------------------------------------------------- a family of endings

def test_one_twist_for_all_endings(serve, reference, folder):
    """A conditional twist foresees each ending, in the mean over how often they come."""
    server, model = serve("--dtype", "f32", "--twist-dir", str(folder), **ENDLESS), reference(**ENDLESS)
    client, prompt = server.client(), (0, 2)
    client.learn(name="endings", prompt=list(prompt), max_tokens=3, ignore_eos=True, updates=1000,
                 particles=64, learning_rate=0.003, seed=1, bounds=0, head=rare.HEAD,
                 condition={"tokens": 1, "batch": 8})
    base = after = 0.0
    for letter in "abcd":
        target = Problem(model, prompt, Prior(ignore_eos=True), max_tokens=3,
                         potential=({"type": "continuation", "text": letter},))
        ending = tuple(model.tokenizer.encode(letter))
        twist = Twist(folder / "endings.safetensors", model.next_hidden([ending])[0])
        probability = np.exp(target.solve().log_z)
        base += probability * Induced(target).kl_from_target()
        after += probability * Induced(target, twist).kl_from_target()
        bound(server, target, 300, particles=4, resampling=ALWAYS,
              twist=learned("endings") | {"condition": list(ending)}).check()
    assert after < base / 3
