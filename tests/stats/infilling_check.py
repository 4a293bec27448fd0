#!/usr/bin/env python3
"""Does log Z-hat of the infilling example agree with importance sampling that knows no SMC?

Two estimates of Z = E_p0[p0(ending | prompt, hole)]:
  smc         the mean of Z-hat over seeds, one request of /v1/sample with an observed ending each
  importance  holes drawn from the prior by plain sampling, each then scored with the ending behind it
              by /v1/score: the mean of p0(ending | prompt, hole)
A hole ends by EOS or at its length, and its tokens go into the score as they are.

    infilling_check.py --model ~/.cache/clotho/SmolLM2-135M-Instruct.Q4_1.gguf --draws 100000 --seeds 50
"""
import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.estimate import run_many  # noqa: E402
from support.server import Server  # noqa: E402

PROMPT = "The weather was so"
ENDING = " that we stayed at home."
HOLE = {"sample": "z", "max_tokens": 4}
BATCH = 256  # draws of one request


def request():
    return dict(prompt=PROMPT, segments=[HOLE, {"observe": ENDING}], events=["sample"],
                twist={"type": "none"})


def mean_and_error(weights):
    """Of weights on a linear scale: (log of the mean, its standard error by the delta method)."""
    mean = weights.mean()
    return math.log(mean), weights.std(ddof=1) / math.sqrt(len(weights)) / mean


def smc_estimate(server, seeds, particles, first_seed=1):
    runs = run_many(server, [request() | {"particles": particles, "seed": first_seed + i}
                             for i in range(seeds)], threads=2)
    return mean_and_error(np.exp([r.log_z for r in runs]))


def importance_weights(server, draws, seed, ending):
    """p0(ending | prompt, hole) of some holes from the prior."""
    client = server.client()
    run = client.sample(prompt=PROMPT, particles=draws, seed=seed, max_tokens=HOLE["max_tokens"],
                        events=["sample"])
    scores = client.score(prompt=PROMPT, completions=[s["tokens"] + ending for s in run.samples],
                          per_token=True)
    return [math.exp(sum(s["token_log_p"][-len(ending):])) for s in scores]


def importance_estimate(server, draws, first_seed=1_000_000):
    ending = server.client().post_ok("/tokenize", {"content": ENDING})["tokens"]
    weights = []
    while len(weights) < draws:
        weights += importance_weights(server, BATCH, first_seed + len(weights), ending)
    return mean_and_error(np.array(weights))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--particles", type=int, default=256)
    arguments = parser.parse_args()
    with Server(Path(arguments.model).expanduser()) as server:
        smc, error = smc_estimate(server, arguments.seeds, arguments.particles)
        print(f"smc         log Z = {smc:.4f} +- {error:.4f}  "
              f"({arguments.seeds} seeds of {arguments.particles} particles)", flush=True)
        importance, importance_error = importance_estimate(server, arguments.draws)
        print(f"importance  log Z = {importance:.4f} +- {importance_error:.4f}  ({arguments.draws} draws)")
        apart = (smc - importance) / math.hypot(error, importance_error)
        print(f"they are {abs(apart):.1f} standard errors apart")
    return 0 if abs(apart) < 5 else 1


if __name__ == "__main__":
    sys.exit(main())
