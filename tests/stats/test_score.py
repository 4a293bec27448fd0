"""/v1/score against float64: 0.01 nats a token in f32, 0.05 in bf16."""
import math

import numpy as np
import pytest

from support.cases import cases
from support.posterior import Problem
from support.reference import Prior
from support.shapes import BOS, ENDING, ENDLESS, EOS, SPELLINGS, TIED

DTYPES = ["f32", "bf16"]
SHAPES = {
    "ending": ENDING,
    "tied": TIED,
    "endless": ENDLESS,
    "spellings": SPELLINGS,
    "one-head": dict(dim=16, heads=1, kv_heads=1, head_dim=16, layers=1, ffn=48),
    "wide": dict(dim=64, heads=8, kv_heads=2, head_dim=16, layers=3, ffn=160, scale=2.0),
    "narrow-heads": dict(dim=48, heads=4, kv_heads=4, head_dim=4, ffn=40, rope_base=500.0),
    "rope-factors": dict(dim=32, rope_factors=True, rope_base=500000.0, scale=2.0),
    "f16": dict(type="F16", scale=2.0),
    "bf16": dict(type="BF16", tied=True, scale=2.0),
    "q8_0": dict(type="Q8_0", scale=2.0),
    "q4_0": dict(type="Q4_0", dim=64, scale=2.0),
    "q4_1": dict(type="Q4_1", dim=64, tied=True, scale=2.0),
    "q5_0": dict(type="Q5_0", scale=2.0),
    "q5_1": dict(type="Q5_1", scale=2.0),
    "bytes": dict(tokenizer="bytes", vocab=512, scale=2.0),
    "sentencepiece": dict(tokenizer="sentencepiece", scale=2.0),
    "gpt2": dict(tokenizer="gpt2", tied=True, scale=2.0),
}
DEVICE = {"one-head", "narrow-heads", "q4_1", "bytes"}
PRIORS = {
    "plain": Prior(),
    "cold": Prior(temperature=0.5),
    "hot": Prior(temperature=2.5),
    "no-eos": Prior(ignore_eos=True),
    "later-eos": Prior(min_tokens=3),
    "bias": Prior(logit_bias={2: -2.0, 3: 1.5, 4: -100.0}),
}
TRUNCATED = {
    "top_k": Prior(top_k=3),
    "top_k-1": Prior(top_k=1),
    "top_p": Prior(top_p=0.8),
    "together": Prior(temperature=0.7, top_k=5, top_p=0.9, min_tokens=2, logit_bias={2: 0.5}),
}


def random_texts(model, n, longest, seed=0):
    """Ids that a text may hold: no BOS in the middle, EOS at the end of some."""
    rng = np.random.default_rng(seed)
    usable = [i for i in range(model.vocab) if i not in (model.tokenizer.bos, model.tokenizer.eos)]
    texts = [[int(t) for t in rng.choice(usable, rng.integers(1, longest + 1))] for _ in range(n)]
    return [t + [model.tokenizer.eos] * (i % 3 == 0) for i, t in enumerate(texts)]


def errors(server, model, prior, texts, prompt):
    """|log p - float64's| of every token; where the one is -inf, the other must be."""
    target = Problem(model, tuple(prompt), prior)
    results = server.client().score(prompt=prompt, completions=texts, per_token=True, **prior.fields())
    apart = [0.0]
    for text, found in zip(texts, results, strict=True):
        exact = target.forced((), text)
        given = [-math.inf if x is None else x for x in found["token_log_p"]]
        assert found["tokens"] == text and len(given) == len(exact)
        assert np.array_equal(np.isinf(given), np.isinf(exact))
        apart += [abs(g - e) for g, e in zip(given, exact) if e > -math.inf]
        if -math.inf in exact:
            assert found["log_p"] is None
        else:
            assert abs(found["log_p"] - sum(given)) < 1e-9
    return np.array(apart)


def check(serve, reference, shape, prior, dtype, texts, prompt):
    """In f32 every token agrees with float64. In bf16 the tokens do in the mean, the exact model
    being a less rounded one; and each with the float64 model that rounds at the same places."""
    server, flatten = serve("--dtype", dtype, **SHAPES[shape]), min(prior.temperature, 1)
    off = errors(server, reference(**SHAPES[shape]), prior, texts, prompt)
    if dtype == "f32":
        assert off.max() < 1e-4 / flatten  # the contract says 0.01
        return
    assert off.mean() < 0.05 / flatten
    off = errors(server, reference(rounded=True, **SHAPES[shape]), prior, texts, prompt)
    assert off.max() < 0.05 / flatten and off.mean() < 0.01 / flatten


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", cases(SHAPES, device=lambda shape: shape in DEVICE))
def test_models(serve, reference, shape, dtype):
    model = reference(**SHAPES[shape])
    prompt = [model.tokenizer.bos, *random_texts(model, 2, 9, 1)[1]]
    check(serve, reference, shape, Prior(), dtype, random_texts(model, 40, 24), prompt)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("shape", ["ending", "bytes"])
def test_priors(serve, reference, shape, prior, dtype):
    model = reference(**SHAPES[shape])
    texts, prompt = random_texts(model, 40, 12), [model.tokenizer.bos, 5]
    check(serve, reference, shape, PRIORS[prior], dtype, texts, prompt)


@pytest.mark.parametrize("shape,prior", cases(
    ["ending", "bytes"], TRUNCATED, device=lambda shape, prior: prior == "together"))
def test_truncated_priors(serve, reference, shape, prior):
    """In f32 alone: rounding moves a token across the edge, and then nothing is near."""
    model = reference(**SHAPES[shape])
    texts, prompt = random_texts(model, 60, 6), [model.tokenizer.bos, 5]
    check(serve, reference, shape, TRUNCATED[prior], "f32", texts, prompt)


@pytest.mark.parametrize("shape", ["bytes", "gpt2", "sentencepiece"])
def test_texts_are_tokenised_as_text(serve, reference, shape):
    """A prompt as text has BOS and the tokenizer's own prefix, a completion has neither."""
    model = reference(**SHAPES[shape])
    server = serve("--dtype", "f32", **SHAPES[shape])
    prompt, completions = "the", [" they", "e", " man", "andold"]
    encode = model.tokenizer.encode
    if shape == "gpt2":  # the reference has no pre-tokenizer
        completions = completions[:3]
    results = server.client().score(prompt=prompt, completions=completions, per_token=True)
    target = Problem(model, tuple(encode(prompt, start=True)))
    for text, found in zip(completions, results, strict=True):
        assert found["tokens"] == encode(text)
        np.testing.assert_allclose(found["token_log_p"], target.forced((), encode(text)), atol=0.01)


def test_empty_prompt_is_bos_alone(serve, reference):
    client = serve("--dtype", "f32", **ENDING).client()
    target = Problem(reference(**ENDING), (BOS,))
    (found,) = client.score(completions=[[2, 3]])
    assert abs(found["log_p"] - sum(target.forced((), [2, 3]))) < 0.01


@pytest.mark.device
def test_same_text_same_floats(serve):
    """A text's score depends on nothing but the text: not on its place, not on its neighbours."""
    for dtype in DTYPES:
        client = serve("--dtype", dtype, **ENDING).client()
        rng = np.random.default_rng(5)
        texts = [[int(t) for t in rng.integers(1, 6, rng.integers(1, 40))] for _ in range(50)]
        together = client.score(prompt=[0, 2, 3], completions=texts, per_token=True)
        for i, text in enumerate(texts[:20]):
            (alone,) = client.score(prompt=[0, 2, 3], completions=[text], per_token=True)
            assert alone | {"index": i} == together[i]
        # The same tokens behind a shorter prompt: only the border between them moves.
        moved = client.score(prompt=[0, 2], completions=[[3, *t] for t in texts], per_token=True)
        assert [m["token_log_p"][1:] for m in moved] == [r["token_log_p"] for r in together]


def test_twist_values(serve):
    """log_twist is log psi of the text after each token."""
    client = serve("--dtype", "f32", **ENDING).client()
    lexicon = {"type": "lexicon", "bias": {"a": 0.5, "b": -1.0, f"#{EOS}": 0.25}, "weight": 2}
    (found,) = client.score(prompt=[0], completions=[[2, 3, 4, 2, 1]], potential=lexicon,
                            twist={"type": "factor"})
    np.testing.assert_allclose(found["log_twist"], [1, -1, -1, 0, 0.5], atol=1e-6)
    (found,) = client.score(prompt=[0], completions=[[2, 3, 4, 2, 1]], potential=lexicon,
                            twist={"type": "potential", "every": 2, "power": 0.5})
    np.testing.assert_allclose(found["log_twist"], [0, -0.5, -0.5, 0, 0], atol=1e-6)
