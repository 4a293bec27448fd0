"""Write the seeds of fuzz_gguf, fuzz_model, fuzz_tokenizer and fuzz_twist: small files that reach every branch of the happy path.

    python tests/fuzz/make_seeds.py
"""
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support import gguf  # noqa: E402

METADATA = {  # the keys that fuzz_gguf asks for
    "general.alignment": (gguf.U32, 32),
    "a": (gguf.U64, 7),
    "b": (gguf.F64, 0.5),
    "c": (gguf.STRING, "text"),
    "d": (gguf.ARRAY, (gguf.STRING, ["", "x"])),
    "e": (gguf.ARRAY, (gguf.F32, [1.0, 2.0])),
    "f": (gguf.ARRAY, (gguf.I32, [-1])),
    "g": (gguf.ARRAY, (gguf.ARRAY, [(gguf.U8, [1]), (gguf.STRING, ["y"])])),
    "h": (gguf.BOOL, True),
}


def write_gguf(folder):
    row, small = np.linspace(-1, 1, 32).reshape(1, 32), np.ones((2, 3))
    gguf.write(folder / "empty", {}, {})
    gguf.write(folder / "metadata", METADATA, {})
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        gguf.write(folder / kind, {}, {"t": (row, kind), "u": (small, "F32")})
    for kind in ("Q4_K", "Q5_K", "Q6_K"):  # a block's bytes, under another type
        ident, elements, size = gguf.TENSOR_TYPES[kind]
        path = folder / kind
        gguf.write(path, {}, {"t": (np.ones((size + 3) // 4), "F32")})
        raw = bytearray(path.read_bytes())
        at = raw.index(b"t\x01\0\0\0") + 5
        raw[at:at + 12] = elements.to_bytes(8, "little") + ident.to_bytes(4, "little")
        path.write_bytes(raw)


def write_model(folder):
    dim, heads, head_dim, ffn, vocab = 4, 2, 2, 3, 5
    number = lambda value: (gguf.U32, value)
    metadata = {
        "general.architecture": (gguf.STRING, "llama"), "general.name": (gguf.STRING, "tiny"),
        "llama.embedding_length": number(dim), "llama.block_count": number(1),
        "llama.feed_forward_length": number(ffn), "llama.context_length": number(8),
        "llama.attention.head_count": number(heads), "llama.attention.head_count_kv": number(1),
        "llama.attention.key_length": number(head_dim), "llama.rope.dimension_count": number(2),
        "llama.rope.freq_base": (gguf.F32, 100.0), "llama.rope.scaling.type": (gguf.STRING, "linear"),
        "llama.rope.scaling.factor": (gguf.F32, 2.0),
        "llama.attention.layer_norm_rms_epsilon": (gguf.F32, 1e-5)}
    shapes = {
        "token_embd": (vocab, dim), "output": (vocab, dim), "output_norm": (dim,), "rope_freqs": (1,),
        "blk.0.attn_norm": (dim,), "blk.0.ffn_norm": (dim,), "blk.0.attn_q": (heads * head_dim, dim),
        "blk.0.attn_k": (head_dim, dim), "blk.0.attn_v": (head_dim, dim),
        "blk.0.attn_output": (dim, heads * head_dim), "blk.0.ffn_gate": (ffn, dim),
        "blk.0.ffn_up": (ffn, dim), "blk.0.ffn_down": (dim, ffn)}
    tensors = {f"{name}.weight": (np.ones(shape), "F32") for name, shape in shapes.items()}
    gguf.write(folder / "llama", metadata, tensors)


def tokenizer_input(kind, flags, tokens, merges, text):
    """The layout is described in fuzz_tokenizer.c."""
    string = lambda s: bytes([len(s.encode())]) + s.encode()
    head = bytes([kind, flags, len(tokens), len(merges)])
    return (head + b"".join(bytes([type_]) + string(s) for s, type_ in tokens)
            + b"".join(map(string, merges)) + text.encode())


def write_tokenizer(folder):
    bpe = [("<|s|>", 3), ("<u>", 4), ("</s>", 3), ("th", 1), ("the", 1), ("Ġthe", 1)]
    merges = ["t h", "th e", "Ġ the"]
    text = "the  the\n 12é'll <|s|>there<u> 中文\t\t"
    for pre in range(6):
        (folder / f"bpe{pre}").write_bytes(tokenizer_input(4 | pre << 3, 3, bpe, merges, text))
    spm = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("▁", 1), ("t", 9), ("▁t", 17), ("he", 25), ("h", 1),
           ("e", 1), ("▁the", 33), ("<u>", 4)]
    (folder / "spm").write_bytes(tokenizer_input(5, 3, spm, [], text))
    (folder / "spm_crossing").write_bytes(tokenizer_input(5, 3, spm + [("e▁", 1)], [], text))
    (folder / "bare_bpe").write_bytes(tokenizer_input(2, 3, [("a", 0), ("b", 0), ("</s>", 0)], [], "ab ba"))
    (folder / "bare_spm").write_bytes(tokenizer_input(7, 1, spm, [], text))


def twist_input(metadata, shapes):
    """A header and its data; fuzz_twist.c puts the length before it."""
    header, data = {"__metadata__": metadata}, b""
    for name, shape in shapes.items():
        numbers = np.linspace(-1, 1, int(np.prod(shape)), dtype="<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    return json.dumps(header, separators=(",", ":")).encode(), data


def write_twist(folder):
    metadata = {
        "format": "clotho-twist-1", "model": "tiny", "fingerprint": "0123456789abcdef", "dim": "2", "vocab": "3",
        "layers": "1", "hidden": "0", "conditional": "false", "activation": "none", "resample": "true",
        "max_tokens": "2", "method": "ctl", "particles": "8", "updates": "10", "learning_rate": "1e-4", "seed": "1",
        "log_z": "-0.5"}
    linear = {"layer.0.weight": [3, 2], "layer.0.bias": [3]}
    two = {"layer.0.weight": [1, 4], "layer.0.bias": [1], "layer.1.weight": [3, 1], "layer.1.bias": [3],
           "calibration": [2]}
    changes = {"layers": "2", "hidden": "1", "conditional": "true", "activation": "log_sigmoid", "resample": "false",
               "method": "fudge", "log_z": "-inf", "request": "{\"prompts\":[\"é\"]}"}
    header, data = twist_input(metadata, linear)
    (folder / "linear").write_bytes(header + data)
    (folder / "file").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (folder / "two_layers").write_bytes(b"".join(twist_input(metadata | changes, two)))


for name, write in (("gguf", write_gguf), ("model", write_model), ("tokenizer", write_tokenizer),
                    ("twist", write_twist)):
    (HERE / "seeds" / name).mkdir(parents=True, exist_ok=True)
    write(HERE / "seeds" / name)
