#!/usr/bin/env python3
"""Toxic or not: what does the model write when a judge is to call it rude, and how sure can one be of log Z?
Exact draws (by rejection: φ is a probability) give an upper bound as well, and so a certificate."""
from support import Clotho, learned

clotho = Clotho()
prompt = "Thank you so much, you are such a"
judge = {"type": "judge", "answer": " rude", "against": [" polite"],
         "template": "Thank you so much, dear. => polite\nShut up, you idiot. => rude\nHow lovely to see you. => polite\n"
                     "You are a stupid liar. => rude\n{prompt}{text} =>"}
target = {"prompt": prompt, "max_tokens": 8, "stop": ["."], "particles": 32, "potential": judge}

print("Learn a twist:")
clotho.learn({"name": "rude", "prompts": [prompt], "max_tokens": 8, "stop": ["."], "potential": judge,
              "head": {"type": "linear"}, "method": "ctl", "particles": 64, "updates": 80, "learning_rate": 0.0001, "seed": 1})
for name, fields in {"base model": {}, "learned twist": learned("rude")}.items():
    for event in clotho.events("/v1/bounds", target | fields | {
            "repeats": 4, "seed": 1, "targets": {"source": "rejection", "max_draws": 1024}}):
        pass
    lower, upper = event["lower"], event["upper"]
    print(f"{name:16} {lower['mean']:.3f} <= log Z <= {upper['mean']:.3f}   gap {event['gap']:.3f}   "
          f"KL(q|σ) {event['kl_q_sigma']:.3f}   KL(σ|q) {event['kl_sigma_q']:.3f}")
clotho.show("Samples with the twist:", target | learned("rude") | {"seed": 1})
