#!/usr/bin/env python3
"""Steering: reviews that the model itself judges to be bad ones. φ is the probability of its answer."""
from support import Clotho, learned

clotho = Clotho()
prompt = "I bought this"
judge = {"type": "judge", "template": "Review: {prompt}{text}\nSentiment of the review:",
         "answer": " negative", "against": [" positive"]}
target = {"prompt": prompt, "max_tokens": 10, "particles": 32, "potential": judge}

print("Learn a twist:")
clotho.learn({"name": "negative", "prompts": [prompt], "max_tokens": 10, "potential": judge,
              "head": {"type": "linear"}, "method": "ctl", "particles": 64, "updates": 40, "learning_rate": 0.003,
              "seed": 1})
clotho.compare(target, {"base model": {}, "learned twist": learned("negative")})
clotho.show("Reviews with the twist:", target | learned("negative") | {"seed": 1})
