#!/usr/bin/env python3
"""Red-teaming in small: how likely is it that a harmless prompt leads to a rare word, and what do such texts look
like? The base model hardly ever says it, so plain sampling wastes its draws. A twist learns where it is heading."""
from support import Clotho, learned

clotho = Clotho()
prompt = "The old man opened the box and found a"
target = {"prompt": prompt, "max_tokens": 6, "particles": 128, "potential": {"type": "contains", "text": " dragon"}}

print("Learn a twist, first from the one draw in five hundred that has the word:")
clotho.learn({"name": "dragon", "prompts": [prompt], "max_tokens": 6, "potential": target["potential"],
              "head": {"type": "linear"}, "method": "ctl", "particles": 256, "updates": 60, "learning_rate": 0.0003,
              "seed": 1})
clotho.compare(target, {"base model": {}, "learned twist": learned("dragon")})
clotho.show("Samples with the twist:", target | learned("dragon") | {"seed": 1})
