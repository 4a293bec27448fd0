"""Write dequant.txt: blocks of every tensor format, and their values by an independent reader.

    python3 -m venv v && v/bin/pip install gguf==0.19.0 && v/bin/python make_dequant.py > dequant.txt

The reader is gguf-py's numpy reference. Blocks are random bytes, with the half-precision scales set
to chosen finite values (negative, subnormal and zero ones among them). One line a format:
name, number of elements, the blocks' bytes in hex, the values as little-endian floats in hex.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

SCALES = np.array([0.037, -1.25, 6e-6, 3.1e4, 0.0, 1 / 3], dtype=np.float16)
SCALE_OFFSETS = {T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,), T.Q4_0: (0,), T.Q5_0: (0,),
                 T.Q8_0: (0,), T.Q4_1: (0, 2), T.Q5_1: (0, 2)}
HALVES = np.array([0, 0x8000, 1, 0x83FF, 0x3FF, 0x400, 0x3C00, 0xBC01, 0x7BFF, 0x7C00, 0xFC00],
                  dtype="<u2")

rng = np.random.default_rng(20240501)


def blocks(t, n):
    """n blocks as an array of bytes."""
    _, size = GGML_QUANT_SIZES[t]
    if t not in SCALE_OFFSETS:
        values = np.concatenate([rng.normal(size=n - 3), [0.0, -0.0, 1e-41]]).astype("<f4")
        if t == T.F32:
            return values.view(np.uint8)
        if t == T.BF16:
            return (values.view("<u4") >> 16).astype("<u2").view(np.uint8)
        return np.concatenate([values.astype("<f2").view("<u2"), HALVES])[-n:].view(np.uint8)
    raw = rng.integers(0, 256, size=(n, size), dtype=np.uint8)
    for i in range(n):
        for j, at in enumerate(SCALE_OFFSETS[t]):
            scale = SCALES[(i + 2 * j) % len(SCALES)]
            raw[i, at:at + 2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    return raw.reshape(-1)


for t in (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K):
    elements, _ = GGML_QUANT_SIZES[t]
    raw = blocks(t, 32 if elements == 1 else 6 if elements == 32 else 2)
    values = raw.view("<f4") if t == T.F32 else dequantize(raw, t).astype("<f4")
    print(t.name, values.size, raw.tobytes().hex(), values.tobytes().hex())
