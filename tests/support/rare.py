"""A target with a probability of 3e-4 on a model small enough to enumerate, and twists learned for it.

"ccc" somewhere in five tokens: from the prior, one text in three thousand has it. There are two forms:
the hard one, where all other texts are impossible, and a soft one, where they keep e^-12 of their
prior probability. Of the first, log Z-hat of a run that never hits is -inf, and so is KL(q | sigma) of
any proposal that can miss; of the second everything is finite.
"""
from pathlib import Path

from .bounds import exact_draws
from .posterior import Problem
from .reference import Prior
from .shapes import BOS
from .twist import Induced, Twist

SHAPE = dict(vocab=6, dim=32, heads=4, kv_heads=4, ffn=64, scale=2.0, seed=5)
PRIOR = Prior(ignore_eos=True, logit_bias={BOS: -100.0})  # four letters are left
PROMPT = (0, 2)
SOFT = -12.0
HEAD = {"type": "mlp", "hidden": 64, "layers": 3}
LEARN = {"head": HEAD, "updates": 1000, "particles": 128, "learning_rate": 0.003, "seed": 1, "bounds": 0}
K = 32  # particles of the bounds


def problem(model, soft=None):
    potential = {"type": "contains", "text": "ccc"}
    if soft is not None:
        potential["soft"] = soft
    return Problem(model, PROMPT, PRIOR, max_tokens=5, potential=(potential,))


def positives(target, n=1024, seed=1):
    """Exact draws to learn from."""
    return exact_draws(target.solve(), n, seed)


def learn(server, target, folder, name, **fields):
    """Learn a twist over HTTP. Its proposal as the file has it, in float64, and the answer."""
    answer = server.client().learn(**target.fields(), **(LEARN | fields), name=name)
    return Induced(target, Twist(Path(folder) / f"{name}.safetensors")), answer
