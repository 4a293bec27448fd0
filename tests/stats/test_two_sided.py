"""Bounds on log Z against enumeration: E[Z-hat] = Z from below, E[1/Z-hat] = 1/Z from above, a gap
that shrinks as 1/K by the constant that theory gives, and no gap at all with exact twists."""
import numpy as np
import pytest

from support.bounds import bound, exact_draws
from support.cases import cases
from support.estimate import SIGMAS
from support.posterior import Problem
from support.shapes import ENDING, ENDLESS, TIED
from support.twist import Induced, Tilt, Twist, exact_linear_head, replace_layers

SCHEMES = ["systematic", "stratified", "multinomial", "residual"]
SHAPES = {"ending": ENDING, "endless": ENDLESS, "tied": TIED}
TWISTS = {
    "none": {"type": "none"},
    "factor": {"type": "factor"},
    "potential": {"type": "potential", "power": 0.7},
    "learned": {"type": "learned", "name": "short"},
}
BIAS = {2: 1.0, 3: -1.0, 1: 0.5}
POTENTIAL = ({"type": "lexicon", "bias": {f"#{t}": x for t, x in BIAS.items()}},
             {"type": "contains", "text": "ab", "soft": -1.0, "weight": 1.5})
ALWAYS, NEVER = 1, 0
MEMORY = ("--twist-memory", "16M")  # an emulated device is small


def problem(reference, shape, **changes):
    return Problem(reference(**SHAPES[shape]), (0, 2), **({"potential": POTENTIAL} | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bounded")


@pytest.fixture(scope="module")
def server(serve, reference, folder):
    """server(shape) with a twist "short" that has learned a little, so that it is good and wrong."""
    learned = {}

    def start(shape):
        if shape not in learned:
            place = folder / shape
            place.mkdir()
            learned[shape] = serve("--dtype", "f32", "--twist-dir", str(place), *MEMORY, **SHAPES[shape])
            learned[shape].client().learn(**problem(reference, shape).fields(), name="short", updates=20,
                                          learning_rate=0.03, seed=1, bounds=0)
        return learned[shape]

    return start


# ----------------------------------------------------------------------- from below, from above

@pytest.mark.parametrize("shape,twist,scheme", cases(
    SHAPES, TWISTS, SCHEMES, device=lambda *case: case == ("ending", "learned", "residual")))
def test_both_sides(server, reference, shape, twist, scheme):
    """With few particles, resampled at every step: where a wrong conditional law shows most."""
    bound(server(shape), problem(reference, shape), 3000, particles=3, twist=TWISTS[twist],
          resampling={"scheme": scheme, "ess_threshold": ALWAYS}).check()


@pytest.mark.parametrize("twist", TWISTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_both_sides_without_resampling(server, reference, shape, twist):
    bound(server(shape), problem(reference, shape), 2000, particles=4, twist=TWISTS[twist],
          resampling={"ess_threshold": NEVER}).check()


@pytest.mark.device
def test_both_sides_where_runs_die(server, reference):
    """A dead run counts as 0 from below; a pinned one never dies."""
    target = problem(reference, "ending", potential=({"type": "contains", "text": "ba"},))
    bounds = bound(server("ending"), target, 4000, particles=6)
    bounds.check()
    assert np.isneginf(bounds.log_lower).any() and np.isfinite(bounds.log_upper).all()
    assert all(a["lower"]["mean"] is None and a["gap"] is None for a in bounds.answers)


@pytest.mark.parametrize("shape", SHAPES)
def test_targets_by_rejection(server, reference, shape):
    """The server's own exact draws are as good as those of an enumeration."""
    soft = ({"type": "contains", "text": "ab", "soft": -2.0}, {"type": "contains", "text": "c", "soft": -1.0})
    bound(server(shape), problem(reference, shape, potential=soft), 3000, particles=3,
          twist={"type": "potential"}, resampling={"ess_threshold": ALWAYS},
          targets={"source": "rejection", "max_draws": 1000000}).check()


# ------------------------------------------------------------------------------------ divergences

def induced(target, twist, folder):
    """The proposal that a request with this twist draws from, in float64."""
    tilts = {"factor": Tilt(target.model.vocab, BIAS)}
    if twist == "learned":
        tilts["learned"] = Twist(folder / "short.safetensors")
    return Induced(target, tilts.get(twist))


@pytest.mark.parametrize("threshold", [NEVER, ALWAYS])
@pytest.mark.parametrize("twist", TWISTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_divergences(server, reference, folder, shape, twist, threshold):
    """F = log Z - KL(q | sigma) and G = log Z + KL(sigma | q) as means over draws, resampled or not;
    G is also that of the given targets to rounding."""
    running, target = server(shape), problem(reference, shape)
    solution, exact = target.solve(), induced(target, twist, folder / shape)
    targets = exact_draws(solution, 500, 3)
    answer = running.client().bounds(**target.fields(), twist=TWISTS[twist], particles=8, repeats=500,
                                     seed=1, targets=targets, resampling={"ess_threshold": threshold})
    f, g = answer["log_z"] - answer["kl_q_sigma"], answer["log_z"] + answer["kl_sigma_q"]
    assert abs(f - solution.log_z + exact.kl_to_target()) < SIGMAS * answer["kl_q_sigma_stderr"]
    assert abs(g - solution.log_z - exact.kl_from_target()) < SIGMAS * answer["kl_sigma_q_stderr"]
    at = [solution.index[tuple(t)] for t in targets]
    assert abs(g - (solution.log_target - exact.log_q)[at].mean()) < 1e-3


# ------------------------------------------------------------------------------------- the gap

KS = np.array([8, 16, 32, 64])


@pytest.mark.parametrize("twist,threshold", [
    ("none", NEVER), ("factor", NEVER), ("factor", ALWAYS), ("learned", ALWAYS), ("potential", 0.5)])
def test_gap_shrinks_as_1_over_k(server, reference, folder, twist, threshold):
    """Without resampling, gap = chi2(sigma | q) / K to first order, which enumeration knows."""
    target = problem(reference, "endless")
    gaps, errors = np.array([
        bound(server("endless"), target, 300, seed=10 * k, particles=k, twist=TWISTS[twist],
              resampling={"ess_threshold": threshold}).gap() for k in KS.tolist()]).T
    slope, error = fit_slope(np.log(KS), np.log(gaps), errors / gaps)
    assert abs(slope + 1) < SIGMAS * error + 0.05, f"slope {slope:.3f} +- {error:.3f} of {gaps}"
    if threshold == NEVER:
        exact = induced(target, twist, folder / "endless").chi_square()
        assert abs(gaps[-1] * KS[-1] - exact) < SIGMAS * errors[-1] * KS[-1] + 2 * exact**2 / KS[-1]


def fit_slope(x, y, errors):
    """Weighted least squares: the slope of a line and its standard error."""
    w = errors**-2
    x = x - (w * x).sum() / w.sum()
    return (w * x * y).sum() / (w * x * x).sum(), (w * x * x).sum()**-0.5


# ----------------------------------------------------------------------------- the exact twist

WIDE = dict(vocab=6, dim=48, heads=4, kv_heads=2, ffn=64, scale=2.0, seed=7)
EXACT = 1e-4  # nats: what float32 does to a head that is exact


@pytest.fixture(scope="module")
def exact(serve, reference, folder):
    """A server with the twist "exact": psi* of a problem with fewer prefixes than dimensions, as a
    linear head."""
    running = serve("--dtype", "f32", "--twist-dir", str(folder), *MEMORY, **WIDE)
    target = Problem(reference(**WIDE), (0, 2), max_tokens=3, potential=POTENTIAL)
    running.client().learn(**target.fields(), name="exact", updates=1, bounds=0)
    replace_layers(folder / "exact.safetensors", [exact_linear_head(target)])
    return running, target


@pytest.mark.parametrize("threshold,scheme", cases(
    [NEVER, ALWAYS], SCHEMES, device=lambda threshold, _: threshold == ALWAYS))
def test_no_gap_with_the_exact_twist(exact, threshold, scheme):
    """Every run says log Z, and q is sigma."""
    running, target = exact
    bounds = bound(running, target, 20, particles=5, twist={"type": "learned", "name": "exact"},
                   resampling={"scheme": scheme, "ess_threshold": threshold})
    assert np.abs(np.concatenate([bounds.log_lower, bounds.log_upper])).max() < EXACT
    (answer,) = bounds.answers
    assert abs(answer["gap"]) < EXACT
    assert abs(answer["kl_q_sigma"]) < EXACT and abs(answer["kl_sigma_q"]) < EXACT
