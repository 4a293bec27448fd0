#!/usr/bin/env python3
"""Infilling with one twist for a whole family of endings: a conditional twist sees the ending that the hole has to
lead to. It is learned once, from texts that the model writes itself, and then serves any ending of that length."""
from support import Clotho

T, ENDING = 6, 3
clotho = Clotho()
prompt = "Once upon a time, there was a"

print(f"Learn a twist for holes of {T} tokens and endings of {ENDING}:")
clotho.learn({"name": "endings", "prompts": [prompt], "max_tokens": T, "method": "ctl", "ignore_eos": True,
              "head": {"type": "mlp", "hidden": 256, "layers": 3}, "condition": {"tokens": ENDING, "batch": 16},
              "particles": 64, "updates": 80, "learning_rate": 0.001, "seed": 1})
for ending in (" in the forest", " who loved to"):
    target = {"prompt": prompt, "max_tokens": T, "particles": 64, "ignore_eos": True,
              "potential": {"type": "continuation", "text": ending}}
    twisted = {"twist": {"type": "learned", "name": "endings", "condition": ending}}
    print(f"\n{prompt} ___{ending}")
    clotho.compare(target, {"base model": {}, "conditional twist": twisted})
    clotho.show("Samples with the twist:", target | twisted | {"seed": 1})
