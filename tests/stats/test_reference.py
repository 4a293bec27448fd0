"""The yardstick itself: the reference against what is known without it."""
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from support import gguf
from support.posterior import Problem
from support.reference import Model, Prior, log_sum_exp

SHAPE = dict(vocab=6, dim=16, heads=2, kv_heads=1, ffn=32, scale=1.5, seed=3)
PRIORS = [
    Prior(),
    Prior(temperature=0.7, top_k=3),
    Prior(top_p=0.8),
    Prior(min_tokens=2),
    Prior(ignore_eos=True, temperature=1.5),
    Prior(logit_bias={2: -math.inf, 3: 1.5}, top_k=4, top_p=0.95, min_tokens=1),
]


@pytest.mark.parametrize("prior", PRIORS, ids=range(len(PRIORS)))
@pytest.mark.parametrize("stop", [(), ("ab",), ("a", "dd")], ids="/".join)
def test_probabilities_of_all_texts_sum_to_one(reference, prior, stop):
    texts = Problem(reference(**SHAPE), (0, 2), prior, 4, stop).texts()
    assert abs(log_sum_exp([t.log_p for t in texts])) < 1e-12
    assert len({t.tokens for t in texts}) == len(texts)
    assert all(abs(sum(t.token_log_p) - t.log_p) < 1e-12 for t in texts)


def test_enumeration_is_all_sequences(reference):
    """Against itertools: without EOS and stop strings the texts are the whole of V^T, and each
    probability is the product of softmaxes from one forward over the whole sequence."""
    model = reference(**SHAPE)
    solution = Problem(model, (0, 3), Prior(ignore_eos=True), 3).solve()
    sequences = list(itertools.product([0, 2, 3, 4, 5], repeat=3))
    logits = model.logits([(0, 3) + s for s in sequences])[:, 1:-1]
    logits[..., 1] = -np.inf
    log_p = np.take_along_axis(logits, np.array(sequences)[..., None], -1)[..., 0]
    log_p = (log_p - log_sum_exp(logits)).sum(1)
    assert sorted(solution.index) == sequences
    found = [solution.log_prior[solution.index[s]] for s in sequences]
    np.testing.assert_allclose(found, log_p, atol=1e-12)


def test_an_observation_is_a_continuation_behind_a_fixed_hole(reference):
    """Observing behind a hole without ends is the continuation potential, and log Z is the
    logarithm of the summed joint probability."""
    model, prior = reference(**SHAPE), Prior(ignore_eos=True)
    hole = {"sample": "z", "max_tokens": 3}
    seen = Problem(model, (0,), prior, segments=(hole, {"observe": "ba"})).solve()
    scored = Problem(model, (0,), prior, 3, potential=({"type": "continuation", "text": "ba"},))
    assert abs(seen.log_z - scored.solve().log_z) < 1e-12
    joint = Problem(model, (0,), prior, 5).solve()
    ends = [p for t, p in zip(joint.texts, joint.log_prior) if t.tokens[3:] == (3, 2)]
    assert abs(seen.log_z - log_sum_exp(ends)) < 1e-12


def test_to_intervene_leaves_the_hole_before_alone(reference):
    model = reference(**SHAPE)
    hole, later = {"sample": "z", "max_tokens": 1}, {"sample": "y", "max_tokens": 1}
    z = [Problem(model, (0,), Prior(), 1).solve().posterior]
    for kind in ("text", "observe"):
        s = Problem(model, (0,), segments=(hole, {kind: "c"}, later)).solve()
        marginal = np.zeros(6)
        for t, p in zip(s.texts, s.posterior):
            marginal[t.tokens[0]] += p
        z.append(marginal)
    np.testing.assert_allclose(z[1], z[0], atol=1e-12)  # do
    assert np.abs(z[2] - z[0]).sum() > 0.05  # see


def test_top_k_keeps_the_lower_of_equal_ids():
    log_p = Prior(top_k=2).log_p0([1.0, 0.0, 1.0, 1.0], 1, 0)
    assert np.isfinite(log_p).tolist() == [True, False, True, False]


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    p = np.array([0.125, 0.5, 0.25, 0.125])
    for top_p, kept in [(0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.8, 3), (0.9, 4)]:
        log_p = Prior(top_p=top_p).log_p0(np.log(p), 0, 0)
        assert np.isfinite(log_p).sum() == kept
        assert abs(log_sum_exp(log_p)) < 1e-12


@pytest.mark.parametrize("kind,bound", [("F32", 1e-7), ("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 1e-2),
                                        ("Q5_0", 0.1), ("Q5_1", 0.1), ("Q4_0", 0.15), ("Q4_1", 0.15)])
def test_tensors_survive_the_file(tmp_path, kind, bound):
    x = np.random.default_rng(0).standard_normal((3, 64))
    gguf.write(tmp_path / "x.gguf", {"k": (gguf.STRING, "v")}, {"x": (x, kind)})
    file = gguf.read(tmp_path / "x.gguf")
    assert file.metadata == {"k": "v"}
    assert np.abs(file.tensor("x") - x).max() < bound * np.abs(x).max()


def test_golden_logits_of_trained_models():
    folder = os.environ.get("CLOTHO_TEST_DATA")
    if not folder:
        pytest.skip("CLOTHO_TEST_DATA is not set: no trained models to compare with")
    for golden in json.loads((Path(folder) / "golden_gguf.json").read_text()):
        model = Model(Path(folder) / golden["file"])
        assert model.tokenizer.encode(golden["prompt"], start=True) == golden["prompt_ids"]
        logits = model.logits([golden["ids"]])[0]
        for step in golden["steps"]:
            row = logits[step["pos"]]
            assert np.abs(row[step["top5_ids"]] - step["top5_logits"]).max() < 1e-5
            assert abs(log_sum_exp(row) - step["logsumexp"]) < 1e-5
