#!/usr/bin/env python3
"""Steering: reviews that the model itself calls bad ones. φ is the probability of its answer, to the fifth power."""
from support import Clotho, learned

clotho = Clotho()
prompt = "I watched the film last night. It was"
judge = {"type": "judge", "answer": " negative", "against": [" positive"], "weight": 5,
         "template": "A great film, I loved every minute. => positive\nBoring and stupid, I left early. => negative\n"
                     "The acting was superb. => positive\nA waste of time. => negative\nIt was{text} =>"}
target = {"prompt": prompt, "max_tokens": 10, "stop": ["."], "particles": 32, "potential": judge}

print("Learn a twist:")
clotho.learn({"name": "negative", "prompts": [prompt], "max_tokens": 10, "stop": ["."], "potential": judge,
              "head": {"type": "linear"}, "method": "ctl", "particles": 64, "updates": 80, "learning_rate": 0.0001,
              "seed": 1})
clotho.compare(target, {"base model": {}, "learned twist": learned("negative")})
clotho.show("Reviews with the twist:", target | learned("negative") | {"seed": 1})
