"""The default model of the product: infilling with a real language model, memory and start-up.

Runs where the model file is: $CLOTHO_MODEL, or the cache folder that deploy/quickstart.sh fills."""
import math
import os
from pathlib import Path

import numpy as np
import pytest

import infilling_check
from support.server import Server

CACHED = "~/.cache/clotho/SmolLM2-135M-Instruct.Q4_1.gguf"
MIB = 1 << 20


@pytest.fixture(scope="module")
def server():
    model = Path(os.environ.get("CLOTHO_MODEL") or CACHED).expanduser()
    if not model.exists():
        pytest.skip(f"{model} is not there; deploy/quickstart.sh fetches it, or set CLOTHO_MODEL")
    with Server(model) as running:
        yield running


def test_it_is_ready_within_three_seconds(server):
    assert server.ready_seconds < 3


def test_the_better_samples_fit_the_ending(server):
    """Infilling: the weights order the samples by how well the ending follows them, and the average
    ending is far likelier after a weighted sample than after a plain one."""
    run = server.client().sample(**infilling_check.request(), particles=64, seed=1)
    phi = np.array([s["log_phi"] for s in run.samples])
    weight = np.array([s["weight"] for s in run.samples])
    assert math.isfinite(run.log_z)
    assert (weight * phi).sum() > phi.mean() + 1
    assert phi[weight.argmax()] >= np.quantile(phi, 0.9)
    for s in run.samples:
        assert s["text"].endswith(infilling_check.ENDING) and s["holes"]["z"] in s["text"]


def test_log_z_agrees_with_importance_sampling(server):
    """A small form of infilling_check.py: both estimates of Z, and their difference in its errors."""
    smc, error = infilling_check.smc_estimate(server, seeds=10, particles=64)
    importance, importance_error = infilling_check.importance_estimate(server, draws=2048)
    assert abs(smc - importance) < 5 * math.hypot(error, importance_error)


def test_memory_is_planned(server):
    """256 particles of 256 tokens stay under 900 MB, and a second time takes nothing more."""
    fields = dict(prompt="Once upon a time", particles=256, max_tokens=256, ignore_eos=True,
                  events=["sample"], seed=1,
                  potential={"type": "lexicon", "bias": {" cat": 1.0}}, twist={"type": "factor"})
    server.client().sample(**fields)
    assert server.memory()[1] < 900e6
    first = server.memory()[1]
    server.client().sample(**fields | {"seed": 2})
    assert server.memory()[1] - first < 8 * MIB
