"""E[Z-hat] = Z and the weighted samples follow the enumerated posterior, for every resampling
scheme, twist, proposal and threshold."""
import numpy as np
import pytest

from support.cases import cases
from support.estimate import Estimate, repeat
from support.posterior import Problem, Solution
from support.reference import Prior
from support.shapes import A, B, C, ENDING, ENDLESS, SPELLINGS, TIED

SCHEMES = ["systematic", "stratified", "multinomial", "residual"]
TWISTS = {
    "none": dict(twist={"type": "none"}),
    "factor": dict(twist={"type": "factor"}, proposal="twist"),
    "factor-base": dict(twist={"type": "factor"}, proposal="base"),
    "potential": dict(twist={"type": "potential", "every": 1, "power": 0.7}),
}
LEXICON = {"type": "lexicon", "bias": {"a": 1.0, "b": -1.0, "#1": 0.5}}
POTENTIAL = (LEXICON, {"type": "contains", "text": "ab", "soft": -1.0, "weight": 1.5})


def problem(reference, shape, **changes):
    return Problem(reference(**shape), (0, 2), **({"potential": POTENTIAL} | changes))


# One case for each scheme and each twist.
DEVICE = {("systematic", "none", 0.5), ("stratified", "factor", 1), ("multinomial", "factor-base", 1),
          ("residual", "potential", 0.5)}


@pytest.mark.parametrize("scheme,twist,threshold", cases(
    SCHEMES, TWISTS, [0, 0.5, 1], device=lambda *case: case in DEVICE))
def test_every_scheme_twist_proposal(serve, reference, scheme, twist, threshold):
    target = problem(reference, ENDING)
    fields = target.fields() | TWISTS[twist] | {
        "particles": 64, "resampling": {"scheme": scheme, "ess_threshold": threshold}}
    runs = repeat(serve("--dtype", "f32", **ENDING), fields, 160)
    Estimate(target.solve(), runs).check()


@pytest.mark.parametrize("twist", TWISTS)
@pytest.mark.parametrize("shape", [TIED, ENDLESS, SPELLINGS], ids=["tied", "endless", "spellings"])
def test_other_models(serve, reference, shape, twist):
    target = problem(reference, shape)
    fields = target.fields() | TWISTS[twist] | {"particles": 128}
    Estimate(target.solve(), repeat(serve("--dtype", "f32", **shape), fields, 160)).check()


PRIORS = {
    "temperature": Prior(temperature=0.6, min_tokens=2),
    "top_k": Prior(top_k=3, logit_bias={A: -1.5, B: 1.0}),
    "top_p": Prior(top_p=0.85, ignore_eos=True),
    "all": Prior(temperature=1.4, top_k=4, top_p=0.9, min_tokens=1, logit_bias={C: -100}),
}


@pytest.mark.parametrize("prior,twist", cases(
    PRIORS, ["none", "factor"], device=lambda *case: case == ("all", "factor")))
def test_the_prior_is_part_of_the_target(serve, reference, prior, twist):
    target = problem(reference, ENDING, prior=PRIORS[prior])
    fields = target.fields() | TWISTS[twist] | {"particles": 64}
    Estimate(target.solve(), repeat(serve("--dtype", "f32", **ENDING), fields, 160)).check()


@pytest.mark.parametrize("particles", [1, 2, 3, 7])
@pytest.mark.parametrize("twist", TWISTS)
def test_small_populations(serve, reference, twist, particles):
    """Where resampling bites hardest. Mistakes of one part in K show here."""
    target = problem(reference, ENDING)
    fields = target.fields() | TWISTS[twist] | {
        "particles": particles, "resampling": {"scheme": "systematic", "ess_threshold": 0.9}}
    runs = repeat(serve("--dtype", "f32", **ENDING), fields, 6000 // (particles + 3))
    estimate = Estimate(target.solve(), runs)
    estimate.check_z()
    estimate.check_texts()


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_any_partial_potential_is_unbiased(serve, reference, every, power):
    target = problem(reference, ENDING)
    fields = target.fields() | {
        "twist": {"type": "potential", "every": every, "power": power}, "particles": 32,
        "resampling": {"scheme": "systematic", "ess_threshold": 1}}
    runs = repeat(serve("--dtype", "f32", **ENDING), fields, 200)
    estimate = Estimate(target.solve(), runs)
    estimate.check_z()
    estimate.check_texts()


@pytest.mark.parametrize("twist", cases(TWISTS, device=lambda twist: twist == "factor"))
def test_bfloat16_against_its_own_scores(serve, reference, twist):
    """In bf16 the model itself is off by its rounding. The sampler must still be exact for the
    model that it has: the one whose probabilities /v1/score tells."""
    server, target = serve("--dtype", "bf16", **ENDING), problem(reference, ENDING)
    solution = target.solve()
    scores = server.client().score(prompt=list(target.prompt), potential=list(POTENTIAL),
                                   completions=[list(t.tokens) for t in solution.texts])
    own = Solution(solution.texts, *(
        np.array([-np.inf if s[key] is None else s[key] for s in scores]) for key in ("log_p", "log_phi")))
    fields = target.fields() | TWISTS[twist] | {"particles": 64}
    Estimate(own, repeat(server, fields, 160)).check()
