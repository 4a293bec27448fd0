#!/usr/bin/env python3
"""How good is the inference, and what does a twist buy? Bounds on log Z from below and above against the number of
particles, with and without resampling, for the base model's proposal and a learned twist's, as a table and a picture.

    examples/bounds_figure.py [OUT.svg]
"""
import json
import subprocess
import sys

from support import PROGRAM, Clotho, MODEL

out = sys.argv[1] if len(sys.argv) > 1 else "bounds.svg"
prompt, T = "The old man opened the box and found a", 3
potential = {"type": "contains", "text": " dragon"}
clotho = Clotho()

print("Exact draws of the posterior, the few of the prior's that have the word:")
exact, drawn = [], 0
while len(exact) < 8:
    samples, _ = clotho.sample({"prompt": prompt, "max_tokens": T, "particles": 1024, "seed": 1000 + drawn,
                                "potential": potential})
    exact += [s["tokens"] for s in samples if s["weight"] > 0]
    drawn += len(samples)
print(f"  {len(exact)} of {drawn}\n\nLearn a twist, from its own draws:")
clotho.learn({"name": "dragon", "prompts": [prompt], "max_tokens": T, "potential": potential, "head": {"type": "linear"},
              "method": "ctl", "particles": 512, "updates": 80, "learning_rate": 0.0003, "seed": 1})
print()
sys.exit(subprocess.run([
    PROGRAM, "bounds", "--model", MODEL, "--twist-dir", clotho.folder.name, "--twist", "dragon", "--seed", "1",
    "--max-tokens", str(T), "--potential", json.dumps(potential), "--targets", json.dumps(exact[:8]),
    "--particles", "4,16,64,256", "--repeats", "8", "--plot", out, prompt]).returncode)
