"""How far smollm2.txt (llama.cpp, float32) is from the float64 reference, in nats.

    python3 tests/golden/check_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.reference import Model, log_softmax  # noqa: E402


def texts():
    """Lists of rows (token, log p of the next, (five ids), (their log p))."""
    out = []
    for line in open(Path(__file__).with_name("smollm2.txt")):
        if line.startswith("text "):
            out.append([])
            continue
        f = line.split()
        out[-1].append((int(f[0]), float(f[1]), [int(i) for i in f[2::2]], [float(x) for x in f[3::2]]))
    return out


model = Model(sys.argv[1])
worst, total, n = 0.0, 0.0, 0
for rows in texts():
    log_p = log_softmax(model.logits([[r[0] for r in rows]])[0])
    for i, (token, next_log_p, ids, tops) in enumerate(rows):
        gaps = list(log_p[i, ids] - tops)
        if i + 1 < len(rows):
            gaps.append(log_p[i, rows[i + 1][0]] - next_log_p)
        worst = max(worst, np.abs(gaps).max())
        total, n = total + np.abs(gaps).sum(), n + len(gaps)
print(f"{n} log-probabilities: worst {worst:.2e}, mean {total / n:.2e} nats apart")
