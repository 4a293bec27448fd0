#!/usr/bin/env python3
"""Golden numbers for twisted SMC on toys small enough to enumerate. Needs numpy.

    python3 tests/oracle/make_vectors.py        rewrites vectors.json and vectors.h beside it

A toy is a language model over full histories, its logits a hash of (time, prefix, token); toy.h builds
the same tables in C. Besides log Z and the optimal twists this computes E[log Zhat] of free and of
pinned SMC by summing over every draw and every resampling. No random number is used.

Resampling enters only through the law of the number of children N = (N_1..N_K). The pinned law, of a
population in which particle 0 is known to keep a child, is the free law over a random order of the
particles, weighted by N_0 / E[N_0]: each child is equally likely to be the one that is kept. The C code
draws from that law in quite another way, which is what makes the comparison worth having.
"""
import itertools
import json
import math
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
NEVER = -np.inf


# ---------------------------------------------------------------------------------------------- toys
def uniform(seed, a, b, c):
    """Four integers to a number in [0, 1): the splitmix64 finaliser of a linear mix."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + a * 0xBF58476D1CE4E5B9 + b * 0x94D049BB133111EB + c * 0xD6E8FEB86659FD93) & mask
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & mask
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & mask
    x ^= x >> 31
    return (x >> 11) * 2.0**-53


def signed(seed, a, b, c=0):
    return 2 * uniform(seed, a, b, c) - 1


def log_sum(x, axis=-1):
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.squeeze(np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top, axis)


class Toy:
    """tokens 0..v-1, texts of t tokens. With eos, token v-1 ends a text and v is the padding after it.
    A prefix is the integer of its tokens in base `base`, the first the most significant."""

    def __init__(self, seed, v, t, scale, eos_bias=None):
        self.v, self.t, self.eos = v, t, eos_bias is not None
        self.base = v + self.eos
        self.log_p = [self._rows(seed, step, scale, eos_bias or 0) for step in range(t)]

    def _rows(self, seed, step, scale, eos_bias):
        rows = np.full((self.base**step, self.base), NEVER)
        for prefix in range(self.base**step):
            if self.ended(prefix, step):
                rows[prefix, self.v] = 0
                continue
            logits = np.array([scale * signed(seed, step, prefix, token) for token in range(self.v)])
            logits[-1] += eos_bias
            rows[prefix, : self.v] = logits - log_sum(logits)
        return rows

    def ended(self, prefix, step):
        return self.eos and step > 0 and prefix % self.base >= self.v - 1

    def joint(self):
        total = np.zeros(1)
        for rows in self.log_p:
            total = (total[:, None] + rows).reshape(-1)
        return total

    def set_potential(self, log_phi):
        self.log_phi = np.array([log_phi(text) for text in range(self.base**self.t)])
        self.log_z = float(log_sum(self.joint() + self.log_phi))
        self.log_sigma = self.joint() + self.log_phi - self.log_z
        self.optimal = [None] * self.t + [self.log_phi]
        for step in range(self.t - 1, 0, -1):
            self.optimal[step] = log_sum(self.log_p[step] + self.optimal[step + 1].reshape(-1, self.base))

    def set_twist(self, share, seed, width):
        """log psi = share * the optimal one + noise: a twist as learning might leave it."""
        noise = lambda step: np.array([width * signed(seed, step, p) for p in range(self.base**step)])
        self.log_psi = [None] + [share * self.optimal[s] + noise(s) for s in range(1, self.t + 1)]

    def proposal(self, step, twisted):
        if not twisted:
            return self.log_p[step]
        joint = self.log_p[step] + self.log_psi[step + 1].reshape(-1, self.base)
        return joint - log_sum(joint)[:, None]


def toy_a():
    toy = Toy(1, 5, 5, 2.0)
    toy.set_potential(lambda text: 3 * signed(7, 0, text))
    toy.set_twist(0.5, 11, 2.0)
    return toy


def toy_s():
    toy = Toy(3, 3, 3, 2.0)
    toy.set_potential(lambda text: 2 * signed(17, 0, text))
    toy.set_twist(0.4, 19, 4.0)
    return toy


def toy_s2():
    toy = Toy(5, 2, 3, 2.0)
    toy.set_potential(lambda text: 2 * signed(21, 0, text))
    toy.set_twist(0.4, 25, 1.5)
    return toy


def toy_eos():
    """A text counts only if it has ended within t tokens."""
    toy = Toy(29, 4, 6, 1.5, eos_bias=0.3)

    def log_phi(text):
        for length in range(1, toy.t + 1):
            prefix = text // toy.base ** (toy.t - length)
            if toy.ended(prefix, length):
                return 2.5 * signed(31, length, prefix) - 0.4 * length
        return NEVER

    toy.set_potential(log_phi)
    return toy


# --------------------------------------------------------------------------------- laws of the children
def normalised(weights):
    return [w / sum(weights) for w in weights]


def multinomial_law(weights, draws):
    law = {}
    for picks in itertools.product(range(len(weights)), repeat=draws):
        counts = tuple(picks.count(i) for i in range(len(weights)))
        law[counts] = law.get(counts, 0) + math.prod(weights[i] for i in picks)
    return law


def residual_law(weights):
    k = len(weights)
    certain = [math.floor(k * w + 1e-12) for w in weights]
    rest = [max(k * w - c, 0) for w, c in zip(weights, certain)]
    left = k - sum(certain)
    if left == 0:
        return {tuple(certain): 1.0}
    return {tuple(c + n for c, n in zip(certain, counts)): p for counts, p in multinomial_law(normalised(rest), left).items()}


def stratified_law(weights):
    k = len(weights)
    ends = list(itertools.accumulate(weights))
    starts = [0] + ends[:-1]
    law = {(0,) * k: 1.0}
    for n in range(k):
        step = {}
        for i in range(k):
            share = k * (min(ends[i], (n + 1) / k) - max(starts[i], n / k))
            for counts, p in law.items() if share > 1e-15 else ():
                more = counts[:i] + (counts[i] + 1,) + counts[i + 1 :]
                step[more] = step.get(more, 0) + p * share
        law = step
    return law


def systematic_law(weights):
    k = len(weights)
    ends = [k * c for c in itertools.accumulate(weights)]
    ends[-1] = k
    cuts = sorted({0.0, 1.0} | {e % 1 for e in ends})
    law = {}
    for low, high in zip(cuts, cuts[1:]):
        if high - low < 1e-13:
            continue
        below = [0] + [math.ceil(e - (low + high) / 2) for e in ends]
        counts = tuple(b - a for a, b in zip(below, below[1:]))
        law[counts] = law.get(counts, 0) + high - low
    return law


FREE_LAW = {
    "multinomial": lambda w: multinomial_law(w, len(w)),
    "residual": residual_law,
    "stratified": stratified_law,
    "systematic": systematic_law,
}


def pinned_law(weights, scheme):
    k = len(weights)
    orders = list(itertools.permutations(range(k)))
    law = {}
    for order in orders:
        for permuted, p in FREE_LAW[scheme]([weights[i] for i in order]).items():
            counts = tuple(permuted[order.index(i)] for i in range(k))
            if counts[0]:
                law[counts] = law.get(counts, 0) + p * counts[0] / (k * weights[0]) / len(orders)
    return law


def ancestors(counts):
    """Survivors keep their slot; further children take the slots of the childless in ascending order."""
    extra = [i for i, n in enumerate(counts) for _ in range(n - 1)]
    return [i if n else extra.pop(0) for i, n in enumerate(counts)]


# ---------------------------------------------------------------------------------------- enumeration
class Enumeration:
    """Sums over all runs of SMC with k particles: a step draws, weighs and (but for the last) resamples when
    the ESS is below threshold * k, or always if that is 1."""

    def __init__(self, toy, k, scheme, threshold, twisted):
        self.toy, self.k, self.scheme, self.threshold = toy, k, scheme, threshold
        self.log_q = [toy.proposal(step, twisted) for step in range(toy.t)]
        self.laws = {}

    def free(self):
        self.z = self.log_z = self.inverse_z = 0
        self._run(0, None, (0,) * self.k, (0.0,) * self.k, (0.0,) * self.k, 0.0, 1.0)
        return self

    def pinned(self):
        self.z = self.log_z = self.inverse_z = 0
        for text, log_p in enumerate(self.toy.log_sigma):
            self._run(0, text, (0,) * self.k, (0.0,) * self.k, (0.0,) * self.k, 0.0, math.exp(log_p))
        return self

    def _run(self, step, text, prefixes, log_w, log_psi, log_z, p):
        toy = self.toy
        if step == toy.t:
            log_z += float(log_sum(np.array(log_w))) - math.log(self.k)
            self.z += p * math.exp(log_z)
            self.log_z += p * log_z
            self.inverse_z += p * math.exp(-log_z)
            return
        target = toy.log_phi if step == toy.t - 1 else toy.log_psi[step + 1]
        given = () if text is None else (text // toy.base ** (toy.t - 1 - step) % toy.base,)
        for drawn in itertools.product(range(toy.base), repeat=self.k - len(given)):
            tokens = given + drawn
            log_q = [self.log_q[step][prefix, v] for prefix, v in zip(prefixes, tokens)]
            grown = [prefix * toy.base + v for prefix, v in zip(prefixes, tokens)]
            psi = [target[g] for g in grown]
            weights = [
                w + toy.log_p[step][prefix, v] - q + new - old
                for w, prefix, v, q, new, old in zip(log_w, prefixes, tokens, log_q, psi, log_psi)
            ]
            chance = p * math.exp(sum(log_q[len(given) :]))
            self._resample(step, text, grown, weights, psi, log_z, chance)

    def _resample(self, step, text, prefixes, log_w, log_psi, log_z, p):
        law, log_mean = self._law(tuple(log_w), text is not None)
        if law is None or step == self.toy.t - 1:
            self._run(step + 1, text, prefixes, log_w, log_psi, log_z, p)
            return
        for counts, chance in law.items():
            a = ancestors(counts)
            moved = [prefixes[i] for i in a], (0.0,) * self.k, [log_psi[i] for i in a]
            self._run(step + 1, text, *moved, log_z + log_mean, p * chance)

    def _law(self, log_w, pinned):
        if (log_w, pinned) not in self.laws:
            weights = np.exp(np.array(log_w) - max(log_w))
            share = normalised(weights.tolist())
            wanted = self.threshold == 1 or 1 / sum(w * w for w in share) < self.threshold * self.k * (1 - 1e-12)
            law = None
            if wanted:
                law = pinned_law(share, self.scheme) if pinned else FREE_LAW[self.scheme](share)
            self.laws[log_w, pinned] = law, float(log_sum(np.array(log_w))) - math.log(self.k)
        return self.laws[log_w, pinned]


CASES = [  # toy, k, scheme, threshold, twist-induced proposal
    ("S", 2, "multinomial", 1, True),
    ("S", 2, "multinomial", 0.9, True),
    ("S", 2, "systematic", 1, True),
    ("S", 2, "systematic", 0.9, True),
    ("S", 2, "stratified", 1, True),
    ("S", 2, "stratified", 0.9, True),
    ("S", 2, "residual", 1, True),
    ("S2", 3, "multinomial", 1, True),
    ("S2", 3, "systematic", 1, True),
    ("S2", 3, "systematic", 0.6, True),
    ("S2", 3, "stratified", 1, True),
    ("S2", 3, "stratified", 0.6, True),
    ("S2", 3, "residual", 1, True),
    ("S2", 3, "multinomial", 0.9, False),
    ("S2", 3, "systematic", 0.9, False),
    ("S2", 3, "stratified", 0.9, False),
    ("S2", 3, "residual", 0.9, False),
]


def bounds(toys):
    rows = []
    for name, k, scheme, threshold, twisted in CASES:
        toy = toys[name]
        free = Enumeration(toy, k, scheme, threshold, twisted).free()
        pinned = Enumeration(toy, k, scheme, threshold, twisted).pinned()
        assert abs(free.z / math.exp(toy.log_z) - 1) < 1e-10
        assert abs(pinned.inverse_z * math.exp(toy.log_z) - 1) < 1e-10
        assert free.log_z < toy.log_z < pinned.log_z
        rows.append(
            dict(toy=name, k=k, scheme=scheme, threshold=threshold, proposal="twist" if twisted else "base",
                 free=free.log_z, pinned=pinned.log_z)
        )
    return rows


def header(vectors):
    lines = [
        "/* Written by make_vectors.py; vectors.json has the same numbers. */",
        "/* clang-format off */",
        "#pragma once",
        '#include "../../kernels/backend.h"',
        "",
        "static const struct golden_bounds {",
        "    const char *toy;",
        "    int k;",
        "    enum resample_scheme scheme;",
        "    double threshold; /* resample when ESS < threshold k */",
        "    int twisted;      /* the proposal is the twist-induced one, else the prior */",
        "    double free, pinned; /* E[log Z^] of SMC and of conditional SMC */",
        "} golden_bounds[] = {",
    ]
    for row in vectors["bounds"]:
        lines.append(
            '    {"%s", %d, RESAMPLE_%s, %g, %d, %r, %r},'
            % (row["toy"], row["k"], row["scheme"].upper(), row["threshold"], row["proposal"] == "twist", row["free"], row["pinned"])
        )
    lines += ["};", "", "static const struct golden_toy {", "    const char *toy;", "    double log_z;",
              "    double log_psi_1[5]; /* the optimal log twist of the first token */", "} golden_toys[] = {"]
    for name, toy in vectors["toys"].items():
        lines.append('    {"%s", %r, {%s}},' % (name, toy["log_z"], ", ".join(map(repr, toy["optimal_log_psi_1"]))))
    return "\n".join(lines + ["};"]) + "\n"


def main():
    toys = {"A": toy_a(), "S": toy_s(), "S2": toy_s2(), "EOS": toy_eos()}
    vectors = {
        "toys": {name: dict(log_z=t.log_z, optimal_log_psi_1=t.optimal[1].tolist()) for name, t in toys.items()},
        "bounds": bounds(toys),
    }
    (HERE / "vectors.json").write_text(json.dumps(vectors, indent=1) + "\n")
    (HERE / "vectors.h").write_text(header(vectors))


if __name__ == "__main__":
    main()
