"""The default model of the product: infilling with a real language model, memory and start-up.

Runs where the model file is: $CLOTHO_TEST_MODEL, or the cache folder that deploy/quickstart.sh fills."""
import math
import os
from pathlib import Path

import numpy as np
import pytest

from infilling_check import Infilling, importance_estimate, smc_estimate
from support.estimate import run_many
from support.server import Server

CACHED = "~/.cache/clotho/SmolLM2-135M-Instruct.Q4_1.gguf"
CAT = Infilling("The cat sat on the", 2, " and slept.")  # few enough holes for plain importance sampling
MB = 1_000_000
# Threads that wait for each other let others work: on a busy machine several times as fast.
PASSIVE = {"OMP_WAIT_POLICY": "passive"}


@pytest.fixture(scope="module")
def server():
    model = Path(os.environ.get("CLOTHO_TEST_MODEL") or CACHED).expanduser()
    if not model.exists():
        pytest.skip(f"{model} is not there; deploy/quickstart.sh fetches it, or set CLOTHO_TEST_MODEL")
    with Server(model, env=PASSIVE) as running:
        yield running


def test_the_better_samples_fit_the_ending(server):
    """The weights order the samples by how well the ending follows them, and the average ending is
    far likelier after a weighted sample than after a plain one."""
    run = server.client().sample(**Infilling().request(), particles=64, seed=1)
    phi = np.array([s["log_phi"] for s in run.samples])
    weight = np.array([s["weight"] for s in run.samples])
    assert math.isfinite(run.log_z)
    assert (weight * phi).sum() > phi.mean() + 3
    assert phi[weight.argmax()] == phi.max()
    for s in run.samples:
        assert s["text"] == s["holes"]["z"] + Infilling.ending


def test_log_z_agrees_with_importance_sampling(server):
    """A small form of infilling_check.py: both estimates of Z, and their difference in its errors."""
    smc, error = smc_estimate(server, CAT, seeds=12, particles=64)
    importance, importance_error = importance_estimate(server, CAT, draws=1024)
    assert abs(smc - importance) < 5 * math.hypot(error, importance_error)


def test_the_same_bytes_amid_other_clients(server):
    """At the sizes of a real model, where matrices are worked on in tiles and by several threads."""
    fields = dict(prompt="Once upon a time there was", particles=12, max_tokens=10, seed=7, logprobs=True,
                  potential={"type": "lexicon", "bias": {" the": 1.0, ".": -1.0}}, twist={"type": "factor"})
    alone = server.client().sample(**fields).sample_lines()
    others = [dict(prompt="The weather" + " was" * i, particles=1 + 3 * i, max_tokens=8, seed=i)
              for i in range(16)]
    crowd = run_many(server, [fields, *others[:8], fields, *others[8:], fields], threads=17)
    for i in (0, 9, 18):
        assert crowd[i].sample_lines() == alone


def test_memory_is_planned(server):
    """256 particles of 256 tokens stay under 900 MB, and a second time takes nothing more."""
    fields = dict(prompt="Once upon a time", particles=256, max_tokens=256, ignore_eos=True,
                  events=["sample"], seed=1, potential={"type": "lexicon", "bias": {" cat": 1.0}})
    server.client(timeout=600).sample(**fields)
    first = server.memory()[1]
    assert first < 900 * MB
    server.client(timeout=600).sample(**fields | {"seed": 2, "max_tokens": 32})
    assert server.memory()[1] - first < 8 * MB


def test_it_is_ready_within_three_seconds(server):
    """The best of two starts: the other tests are done, but the machine may not be."""
    with Server(server.model, env=PASSIVE) as again:
        assert min(server.ready_seconds, again.ready_seconds) < 3
