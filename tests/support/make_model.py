#!/usr/bin/env python3
"""Tiny models of arch "llama" for the tests: random weights from a seed, written as GGUF v3.

The weights are scaled so that the next-token distributions are peaked and depend on the context:
a flat model would hide most mistakes. The same arguments give the same bytes.

    make_model.py OUT.gguf --tokenizer tiny --dim 32 --layers 2 --heads 4 --kv-heads 2 --type Q8_0
"""
import argparse
from dataclasses import dataclass, replace

import numpy as np

if __package__:
    from . import gguf
else:
    import gguf

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types

TINY_LETTERS = ["a", "b", "c", "d", "ab"]
WORDS = ("the and to of in was he that it his had for with as you on at be is not but they she him we "
         "all are there one said so my no if out up now time very little good man day old").split()


@dataclass(frozen=True)
class Shape:
    """What a tiny model looks like. vocab 0: as many as the tokenizer needs."""
    vocab: int = 0
    dim: int = 32
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    ffn: int = 64
    context: int = 128
    seed: int = 1
    scale: float = 2.5  # standard deviation of the logits
    gain: float = 1.5  # of the layers' matrices: how much the context matters
    eos_bias: float = 0.0  # added to the logit of EOS by a direction of its own; needs an untied head
    tied: bool = False
    type: str = "F32"  # of the matrices; norms are always F32
    tokenizer: str = "tiny"  # tiny, sentencepiece, bytes, gpt2
    rope_base: float = 10000.0
    chat: str = ""  # chatml, llama3 or other: a chat template and the tokens that it takes
    rope_factors: bool = False  # Llama 3's frequency factors
    name: str = "tiny"


# ----------------------------------------------------------------------------------- tokenizers

CHATS = {  # the special tokens, and a template with their markers
    "chatml": (["<|im_start|>", "<|im_end|>"],
               "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nhe is good<|im_end|>\n' }}"
               "{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
               "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"),
    "llama3": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
               "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
               "message['content'] | trim + '<|eot_id|>' }}"),
    "other": ([], "[INST] {{ message['content'] }} [/INST]"),
    "separated": (["<|im_start|>", "<|im_sep|>", "<|im_end|>"],
                  "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"),
}

def _pieces(kind, vocab):
    """(tokens, scores, types) of a tokenizer; the first are <s> and </s> where ids are not fixed."""
    if kind == "tiny":  # for enumeration: as few tokens as it takes
        letters = TINY_LETTERS[:max(vocab - 2, 2)] if vocab else TINY_LETTERS[:4]
        tokens = ["<s>", "</s>", *letters]
        types = [CONTROL, CONTROL] + [NORMAL] * len(letters)
        scores = [0.0, 0.0] + [float(len(t)) - 2 for t in letters]
        return tokens, scores, types
    tokens, types, scores = ["<unk>", "<s>", "</s>"], [UNKNOWN, CONTROL, CONTROL], [0.0] * 3
    if kind == "bytes":  # with byte fallback: any text can be spelt
        tokens += [f"<0x{b:02X}>" for b in range(256)]
        types += [BYTE] * 256
        scores += [0.0] * 256
    letters = ["\u2581", *"etaoinshrdlcumwfgypbvkjxqz", *"ETAOINSHRDLCUMWFGYPBVKJXQZ",
               *".,!?'\"-:;()[]{}0123456789\n"]
    merges = []
    for word in WORDS:  # every prefix of " word", so that merging can reach the whole
        spelt = "\u2581" + word
        merges += [spelt[:n] for n in range(2, len(spelt) + 1)]
    seen = set(letters)
    merges = [m for m in merges if not (m in seen or seen.add(m))]
    tokens += letters + merges
    scores += [-1000.0 - i for i in range(len(letters))] + [-float(i) for i in range(len(merges))]
    types += [NORMAL] * (len(letters) + len(merges))
    return tokens, scores, types


def byte_letters():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, spare = {}, 256
    for byte in range(256):
        letters[byte] = chr(byte) if byte in plain else chr(spare)
        spare += byte not in plain
    return letters


def _gpt2():
    """(tokens, merges): the 256 bytes, a few merged words, <|endoftext|>."""
    letters = byte_letters()
    tokens, merges = [letters[b] for b in range(256)], []
    for word in WORDS:
        spelt = [letters[b] for b in (" " + word).encode()]
        for n in range(1, len(spelt)):
            pair = "".join(spelt[:n]), spelt[n]
            if "".join(pair) not in tokens:
                tokens.append("".join(pair))
                merges.append(" ".join(pair))
    return tokens + ["<|endoftext|>"], merges


def _tokenizer_metadata(shape):
    g, key = gguf, "tokenizer.ggml."
    if shape.tokenizer == "gpt2":
        tokens, merges = _gpt2()
        eos = len(tokens) - 1
        types = [NORMAL] * eos + [CONTROL]
        metadata = {
            key + "model": (g.STRING, "gpt2"),
            key + "pre": (g.STRING, "gpt-2"),
            key + "merges": (g.ARRAY, (g.STRING, merges)),
            key + "bos_token_id": (g.U32, eos),
            key + "eos_token_id": (g.U32, eos),
            key + "add_bos_token": (g.BOOL, True),
        }
    else:
        tokens, scores, types = _pieces(shape.tokenizer, shape.vocab)
        scores += [-10000.0 - i for i in range(shape.vocab - len(tokens))]
        metadata = {
            key + "model": (g.STRING, "llama"),
            key + "scores": (g.ARRAY, (g.F32, scores)),
            key + "bos_token_id": (g.U32, tokens.index("<s>")),
            key + "eos_token_id": (g.U32, tokens.index("</s>")),
            key + "add_bos_token": (g.BOOL, True),
            key + "add_space_prefix": (g.BOOL, shape.tokenizer != "tiny"),
        }
        if "<unk>" in tokens:
            metadata[key + "unknown_token_id"] = (g.U32, tokens.index("<unk>"))
    if shape.chat:
        markers, template = CHATS[shape.chat]
        tokens, types = tokens + markers, types + [CONTROL] * len(markers)
        metadata[key + "scores"][1][1].extend([0.0] * len(markers))
        metadata["tokenizer.chat_template"] = (g.STRING, template)
    missing = shape.vocab - len(tokens)
    if shape.vocab and missing < 0:
        raise ValueError(f"{shape.tokenizer} needs a vocabulary of at least {len(tokens)} tokens")
    tokens = tokens + [f"<extra{i}>" for i in range(missing)]
    types = types + [NORMAL] * max(missing, 0)
    metadata[key + "tokens"] = (g.ARRAY, (g.STRING, tokens))
    metadata[key + "token_type"] = (g.ARRAY, (g.I32, types))
    return metadata, len(tokens)


# -------------------------------------------------------------------------------------- weights

def _tensors(shape, vocab, eos):
    rng = np.random.default_rng(shape.seed)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def matrix(rows, columns, gain):
        return rng.standard_normal((rows, columns)) * gain / np.sqrt(columns), shape.type

    def norm():
        return 1 + 0.2 * rng.standard_normal(shape.dim), "F32"

    # A tied embedding is also the head: its size makes the logits' size, and rmsnorm takes it out
    # again on the way in. Kept small against what the layers add, so the context has the last word.
    embedding = shape.scale if shape.tied else np.sqrt(shape.dim)
    tensors = {"token_embd.weight": matrix(vocab, shape.dim, embedding)}
    for i in range(shape.layers):
        blk = f"blk.{i}."
        tensors |= {
            blk + "attn_norm.weight": norm(),
            blk + "attn_q.weight": matrix(q, shape.dim, 2 * shape.gain),
            blk + "attn_k.weight": matrix(kv, shape.dim, shape.gain),
            blk + "attn_v.weight": matrix(kv, shape.dim, shape.gain),
            blk + "attn_output.weight": matrix(shape.dim, q, 2 * shape.gain),
            blk + "ffn_norm.weight": norm(),
            blk + "ffn_gate.weight": matrix(shape.ffn, shape.dim, shape.gain),
            blk + "ffn_up.weight": matrix(shape.ffn, shape.dim, shape.gain),
            blk + "ffn_down.weight": matrix(shape.dim, shape.ffn, shape.gain),
        }
    tensors["output_norm.weight"] = norm()
    if not shape.tied:
        tensors["output.weight"] = matrix(vocab, shape.dim, shape.scale)
    if shape.eos_bias:
        _add_eos_bias(shape, tensors, eos)
    if shape.rope_factors:
        factors = np.linspace(1, 4, shape.head_dim // 2)
        tensors["rope_freqs.weight"] = (factors, "F32")
    return tensors


def _add_eos_bias(shape, tensors, eos):
    """Make EOS likelier (or rarer) in every context. The last coordinate of the residual stream is
    kept at a large constant, which the last norm turns into about sqrt(dim)/2 times its weight."""
    constant = 3.0 * np.sqrt(shape.dim)
    for name, (array, _) in tensors.items():
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            array[-1] = 0
        elif array.ndim == 2 and name != "token_embd.weight" and array.shape[1] == shape.dim:
            array[:, -1] = 0
    tensors["token_embd.weight"][0][:, -1] = constant / 3
    tensors["output_norm.weight"][0][-1] = 1
    tensors["output.weight"][0][eos, -1] = shape.eos_bias / 2


def make_model(path, shape=Shape(), **changes):
    """Write the model and return its shape with the vocabulary filled in."""
    shape = replace(shape, **changes)
    if shape.heads % shape.kv_heads or shape.head_dim % 2:
        raise ValueError("heads must be a multiple of kv_heads, head_dim even")
    if shape.tied and shape.eos_bias:
        raise ValueError("eos_bias needs an untied head")
    g = gguf
    metadata, vocab = _tokenizer_metadata(shape)
    eos = metadata["tokenizer.ggml.eos_token_id"][1]
    metadata = {
        "general.architecture": (g.STRING, "llama"),
        "general.name": (g.STRING, shape.name),
        "llama.vocab_size": (g.U32, vocab),
        "llama.context_length": (g.U32, shape.context),
        "llama.embedding_length": (g.U32, shape.dim),
        "llama.block_count": (g.U32, shape.layers),
        "llama.feed_forward_length": (g.U32, shape.ffn),
        "llama.attention.head_count": (g.U32, shape.heads),
        "llama.attention.head_count_kv": (g.U32, shape.kv_heads),
        "llama.attention.key_length": (g.U32, shape.head_dim),
        "llama.attention.value_length": (g.U32, shape.head_dim),
        "llama.attention.layer_norm_rms_epsilon": (g.F32, 1e-5),
        "llama.rope.dimension_count": (g.U32, shape.head_dim),
        "llama.rope.freq_base": (g.F32, shape.rope_base),
    } | metadata
    gguf.write(path, metadata, _tensors(shape, vocab, eos))
    return replace(shape, vocab=vocab)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    for name, default in vars(Shape()).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default)
    arguments = vars(parser.parse_args())
    make_model(arguments.pop("out"), **arguments)


if __name__ == "__main__":
    main()
