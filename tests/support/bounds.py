"""Answers of /v1/bounds against the exact log Z.

With r = Z-hat / Z, a run from below has E[r] = 1 and one from above E[1/r] = P(r > 0), the probability
that a run from below does not die: 1 where none can. These are the sharp tests: both bounds follow from
them by Jensen's inequality.
"""
import numpy as np

from .estimate import FEWER, ROUNDING, SIGMAS, run_many

MOST_REPEATS = 1000  # of one request
DEAD = -50.0  # a run whose particles have all died counts as this in a mean of log Z-hat


def exact_draws(solution, n, seed):
    """n independent draws of sigma, as targets of a request."""
    rng = np.random.default_rng(seed)
    return [list(solution.texts[i].tokens)
            for i in rng.choice(len(solution.texts), n, p=solution.posterior)]


class Bounds:
    """Runs from below and above, each from above with an exact draw of its own."""

    def __init__(self, solution, answers):
        self.solution, self.answers = solution, answers
        self.log_lower, self.log_upper = (self._log_ratios(k) for k in ("lower", "upper"))

    def _log_ratios(self, kind):
        log_z = [b["log_z"] for a in self.answers for b in a["bounds"] if b["kind"] == kind]
        return np.array([-np.inf if x is None else x for x in log_z]) - self.solution.log_z

    def check(self):
        below, above = np.exp(self.log_lower), np.exp(-self.log_upper)
        for name, excess in (("E[r] - 1", below - 1), ("E[1/r] - P(r > 0)", above - (below > 0))):
            mean, error = mean_and_error(excess)
            assert abs(mean) < SIGMAS * error, f"{name} = {mean} +- {error}"
        lower, upper = mean_and_error(np.maximum(self.log_lower, DEAD)), mean_and_error(self.log_upper)
        assert lower[0] < SIGMAS * lower[1] and upper[0] > -SIGMAS * upper[1], (lower, upper)

    def gap(self):
        """E[upper] - E[lower] and its standard error. r - 1 and 1/r - 1, whose expectations are 0,
        take out all of the noise but what is quadratic in r - 1, as the gap itself is: the relative
        error hardly depends on how small the gap is."""
        below = np.exp(self.log_lower) - 1 - self.log_lower
        above = np.exp(-self.log_upper) - 1 + self.log_upper
        (x, dx), (y, dy) = mean_and_error(below), mean_and_error(above)
        return x + y, np.hypot(dx, dy)


def mean_and_error(x):
    return x.mean(), np.hypot(x.std(ddof=1) / np.sqrt(len(x)), ROUNDING)


def bound(server, problem, runs, seed=1, **fields):
    """Many runs of each kind; those from above with exact draws, unless fields say where from."""
    solution = problem.solve()
    requests, left = [], runs // FEWER
    while left > 0:
        n = min(left, MOST_REPEATS)
        requests.append(problem.fields() | {
            "repeats": n, "seed": seed + len(requests),
            "targets": exact_draws(solution, n, seed + len(requests))} | fields)
        left -= n
    return Bounds(solution, run_many(server, requests, ask=lambda client, f: client.bounds(**f)))
