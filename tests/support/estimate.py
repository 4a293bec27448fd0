"""Many runs of one request against the exact answer.

A run gives properly weighted draws: for every set A of texts, mean_k exp(log_weight) 1[s_k in A] has
expectation Z sigma(A). This is checked for the whole (A = everything: E[Z-hat] = Z) and for each
likely text; a test's threshold is five standard errors of the mean over runs.
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .server import BACKEND, Run

SIGMAS = 5.0
ROUNDING = 2e-4  # relative: what float32 logits do to Z when runs do not vary at all
NEGLIGIBLE = 2e-4  # of Z: five of these may be missing where too few runs have met a set to tell
OFTEN = 20  # runs that must have met a text to judge it alone
THREADS = 6
FEWER = 4 if BACKEND == "cuda" else 1  # divides the runs: an emulated device is slow


def run_many(server, requests, threads=THREADS, ask=lambda client, fields: client.sample(**fields)):
    """The runs of many requests, a few at a time over kept connections, in the requests' order."""

    def one(fields):
        return ask(server.client(), fields)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, requests))


def repeat(server, fields, runs, seed=1, threads=THREADS):
    """The same request with seeds seed, seed + 1, …; only the samples are sent."""
    runs = runs // FEWER
    fields = {"events": ["sample"]} | fields
    return run_many(server, [fields | {"seed": seed + i} for i in range(runs)], threads)


def log_weight(sample):
    return -np.inf if sample["log_weight"] is None else sample["log_weight"]


class Estimate:
    """Runs of one problem against its exact solution."""

    def __init__(self, solution, runs):
        assert all(isinstance(r, Run) for r in runs)
        self.solution = solution
        self.z_hat = np.exp([r.log_z for r in runs])
        self.mass = np.zeros((len(runs), len(solution.texts)))  # mean_k w 1[text] of each run
        for row, run in zip(self.mass, runs):
            for s in run.samples:
                if s["log_weight"] is None:
                    continue  # dead, perhaps before its end
                text = solution.index.get(tuple(s["tokens"]))
                assert text is not None, f"impossible text {s['tokens']} ({s['text']!r})"
                row[text] += np.exp(log_weight(s)) / len(run.samples)

    def deviation(self, values, exact):
        """(mean - exact) in standard errors. What has hardly any variance counts by its rounding,
        and what carries hardly any mass by NEGLIGIBLE."""
        error = values.std(0, ddof=1) / np.sqrt(len(values))
        floor = ROUNDING * np.abs(exact) + NEGLIGIBLE * np.exp(self.solution.log_z)
        return (values.mean(0) - exact) / np.hypot(error, floor)

    def ratio(self):
        """mean Z-hat / Z and its standard error."""
        z = np.exp(self.solution.log_z)
        return self.z_hat.mean() / z, self.z_hat.std(ddof=1) / z / np.sqrt(len(self.z_hat))

    def check_z(self):
        deviation = self.deviation(self.z_hat, np.exp(self.solution.log_z))
        assert abs(deviation) < SIGMAS, "E[Z]/Z = %.4f +- %.4f" % self.ratio()

    def check_texts(self):
        """Each text that came often enough for its mean to be near normal, the rest together."""
        exact = np.exp(self.solution.log_target)
        often = (self.mass > 0).sum(0) >= OFTEN
        for i in np.flatnonzero(often):
            deviation = self.deviation(self.mass[:, i], exact[i])
            assert abs(deviation) < SIGMAS, f"{self.solution.texts[i].tokens}: " \
                f"{self.mass[:, i].mean():.3g} for {exact[i]:.3g}, {deviation:.1f} standard errors"
        deviation = self.deviation(self.mass[:, ~often].sum(1), exact[~often].sum())
        assert abs(deviation) < SIGMAS, f"rare texts: {deviation:.1f} standard errors"

    def total_variation(self):
        """Of the pooled weighted samples from the posterior, and what to expect of the noise."""
        pooled, runs = self.mass.mean(0), len(self.mass)
        distance = 0.5 * np.abs(pooled / pooled.sum() - self.solution.posterior).sum()
        error = self.mass.std(0, ddof=1).sum() / np.sqrt(runs) / np.exp(self.solution.log_z)
        return distance, 0.5 * np.sqrt(2 / np.pi) * error

    def check(self, total_variation=0.05):
        self.check_z()
        self.check_texts()
        found, noise = self.total_variation()
        assert found < total_variation * np.sqrt(FEWER) and found < 1.5 * noise + 0.005, \
            f"total variation {found:.4f} where noise explains {noise:.4f}"
