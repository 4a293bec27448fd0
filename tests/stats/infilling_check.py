#!/usr/bin/env python3
"""Does log Z-hat of an infilling agree with importance sampling that knows no SMC?

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.estimate import run_many  # noqa: E402
from support.server import Server  # noqa: E402

BATCH = 256  # draws of one request


@dataclass(frozen=True)
class Infilling:
    """As in deploy/quickstart.sh."""
    prompt: str = "The weather was so"
    tokens: int = 4  # of the hole, at most
    ending: str = " that we stayed at home."

    def request(self):
        return dict(prompt=self.prompt, events=["sample"],
                    segments=[{"sample": "z", "max_tokens": self.tokens}, {"observe": self.ending}])


def mean_and_error(weights):
    """(log of the mean, its standard error by the delta method)"""
    mean = weights.mean()
    return math.log(mean), weights.std(ddof=1) / math.sqrt(len(weights)) / mean


def smc_estimate(server, infilling, seeds, particles, first_seed=1):
    runs = run_many(server, [infilling.request() | {"particles": particles, "seed": first_seed + i}
                             for i in range(seeds)], threads=2)
    return mean_and_error(np.exp([r.log_z for r in runs]))


def importance_weights(client, infilling, ending, draws, seed):
    """p0(ending | prompt, hole) of some holes from the prior."""
    run = client.sample(prompt=infilling.prompt, max_tokens=infilling.tokens, particles=draws, seed=seed,
                        events=["sample"])
    scores = client.score(prompt=infilling.prompt, per_token=True,
                          completions=[s["tokens"] + ending for s in run.samples])
    return [math.exp(sum(s["token_log_p"][-len(ending):])) for s in scores]


def importance_estimate(server, infilling, draws, first_seed=1_000_000):
    client, weights = server.client(), []
    ending = client.post_ok("/tokenize", {"content": infilling.ending})["tokens"]
    while len(weights) < draws:
        n = min(BATCH, draws - len(weights))
        weights += importance_weights(client, infilling, ending, n, first_seed + len(weights))
    return mean_and_error(np.array(weights))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--particles", type=int, default=256)
    for name, default in vars(Infilling()).items():
        parser.add_argument("--" + name, type=type(default), default=default)
    a = parser.parse_args()
    infilling = Infilling(a.prompt, a.tokens, a.ending)
    with Server(Path(a.model).expanduser()) as server:
        smc, error = smc_estimate(server, infilling, a.seeds, a.particles)
        print(f"smc         log Z = {smc:.4f} +- {error:.4f}  ({a.seeds} seeds, {a.particles} particles)",
              flush=True)
        importance, importance_error = importance_estimate(server, infilling, a.draws)
        print(f"importance  log Z = {importance:.4f} +- {importance_error:.4f}  ({a.draws} draws)")
    apart = abs(smc - importance) / math.hypot(error, importance_error)
    print(f"they are {apart:.1f} standard errors apart")
    return 0 if apart < 5 else 1


if __name__ == "__main__":
    sys.exit(main())
