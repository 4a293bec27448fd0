"""The llama forward pass, its tokenizer and the prior p0 in float64 numpy: slow, short, independent.

Everything the server computes is checked against this file and posterior.py. Written from the wire
contract and the GGUF format, it shares no code with the program.
"""
from dataclasses import dataclass, field

import numpy as np

from . import gguf


def log_sum_exp(x, axis=-1):
    x = np.asarray(x, np.float64)
    top = x.max(axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.squeeze(np.log(np.exp(x - top).sum(axis, keepdims=True)) + top, axis)


def log_softmax(x):
    return x - log_sum_exp(x)[..., None]


def to_bfloat16(x):
    """Rounded to nearest, ties to even, kept as float64."""
    return gguf.decode(gguf.encode(x, "BF16"), "BF16", x.shape)


class Model:
    """A GGUF of arch "llama", weights dequantised to float64.

    rounded: what enters a matrix product, weights included, and the cached keys and values are
    rounded to bf16, as `--dtype bf16` says. All sums are still float64."""

    def __init__(self, path, rounded=False):
        self.round = to_bfloat16 if rounded else lambda x: x
        g = gguf.read(path)
        meta, t = g.metadata, g.tensor
        self.dim = meta["llama.embedding_length"]
        self.heads = meta["llama.attention.head_count"]
        self.kv_heads = meta.get("llama.attention.head_count_kv", self.heads)
        self.head_dim = meta.get("llama.attention.key_length", self.dim // self.heads)
        self.rope_dim = meta.get("llama.rope.dimension_count", self.head_dim)
        self.eps = meta["llama.attention.layer_norm_rms_epsilon"]
        self.embedding = t("token_embd.weight")
        self.output_norm = t("output_norm.weight")
        head = t("output.weight")
        self.output = self.round(self.embedding if head is None else head)
        self.vocab = len(self.embedding)
        norms, matrices = ("attn_norm", "ffn_norm"), ("attn_q", "attn_k", "attn_v", "attn_output",
                                                      "ffn_gate", "ffn_up", "ffn_down")
        self.layers = [{n: t(f"blk.{i}.{n}.weight") for n in norms} |
                       {n: self.round(t(f"blk.{i}.{n}.weight")) for n in matrices}
                       for i in range(meta["llama.block_count"])]
        base = meta.get("llama.rope.freq_base", 10000.0)
        frequency = base ** (-np.arange(0, self.rope_dim, 2) / self.rope_dim)
        factors = t("rope_freqs.weight")
        self.frequency = frequency if factors is None else frequency / factors
        self.tokenizer = Tokenizer(meta)
        self._cache = {}

    def _norm(self, x, w):
        return self.round(x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * w)

    def _rope(self, x):
        """x (batch, length, heads, head_dim): the first rope_dim elements turn as adjacent pairs."""
        angle = np.arange(x.shape[1])[:, None] * self.frequency
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        even, odd = x[..., 0:self.rope_dim:2], x[..., 1:self.rope_dim:2]
        y = x.copy()
        y[..., 0:self.rope_dim:2] = even * cos - odd * sin
        y[..., 1:self.rope_dim:2] = even * sin + odd * cos
        return y

    def _attention(self, x, w):
        batch, length, _ = x.shape
        shape = batch, length, -1, self.head_dim
        q = self._rope((x @ w["attn_q"].T).reshape(shape))
        k = self.round(self._rope((x @ w["attn_k"].T).reshape(shape)))
        v = self.round((x @ w["attn_v"].T).reshape(shape))
        group = self.heads // self.kv_heads  # consecutive query heads share a key head
        k, v = np.repeat(k, group, 2), np.repeat(v, group, 2)
        score = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(self.head_dim)
        score = np.where(np.tril(np.ones((length, length), bool)), score, -np.inf)
        p = np.exp(log_softmax(score))
        out = np.einsum("bhij,bjhd->bihd", p, v).reshape(batch, length, -1)
        return self.round(out) @ w["attn_output"].T

    def hidden(self, tokens):
        """tokens (batch, length) -> the last hidden states (batch, length, dim), normalised."""
        x = self.embedding[np.asarray(tokens)]
        for w in self.layers:
            x = x + self._attention(self._norm(x, w["attn_norm"]), w)
            y = self._norm(x, w["ffn_norm"])
            gate = y @ w["ffn_gate"].T
            inner = gate / (1 + np.exp(-gate)) * (y @ w["ffn_up"].T)
            x = x + self.round(inner) @ w["ffn_down"].T
        return self._norm(x, self.output_norm)

    def logits(self, tokens):
        """tokens (batch, length) -> logits (batch, length, vocab) of every next token."""
        return self.hidden(tokens) @ self.output.T

    def next_hidden(self, contexts):
        """The last hidden state of each of a list of token tuples. Remembered: enumeration asks
        often."""
        missing = {}
        for c in set(contexts) - self._cache.keys():
            missing.setdefault(len(c), []).append(c)
        for group in missing.values():
            for at in range(0, len(group), 512):
                part = group[at:at + 512]
                self._cache.update(zip(part, self.hidden(part)[:, -1]))
        return [self._cache[c] for c in contexts]

    def next_logits(self, contexts):
        """Logits of the next token after each of a list of token tuples."""
        return [h @ self.output.T for h in self.next_hidden(contexts)]


class Tokenizer:
    """SentencePiece BPE, and byte-level BPE without a pre-tokenizer (texts must be one word)."""

    def __init__(self, meta):
        key = "tokenizer.ggml."
        self.tokens = meta[key + "tokens"]
        self.kind = meta[key + "model"]
        self.types = meta.get(key + "token_type", [1] * len(self.tokens))
        self.bos = meta.get(key + "bos_token_id", -1)
        self.eos = meta.get(key + "eos_token_id", -1)
        self.add_bos = meta.get(key + "add_bos_token", self.kind == "llama")
        self.space_prefix = meta.get(key + "add_space_prefix", True)
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        if self.kind == "llama":
            score = meta[key + "scores"]
            self.rank = {t: -score[i] for i, t in enumerate(self.tokens)}
        else:
            from .make_model import byte_letters
            self.letters = byte_letters()
            self.bytes = {letter: b for b, letter in self.letters.items()}
            self.rank = {tuple(m.split(" ")): i for i, m in enumerate(meta[key + "merges"])}

    def encode(self, text, start=False):
        """start: the text starts a sequence (BOS, SentencePiece's dummy prefix)."""
        ids = [self.bos] if start and self.add_bos else []
        if not text:
            return ids
        if self.kind == "llama":
            if start and self.space_prefix:
                text = " " + text
            symbols = list(text.replace(" ", "\u2581"))
            rank = lambda a, b: self.rank.get(a + b)
        else:
            symbols = [self.letters[b] for b in text.encode()]
            rank = lambda a, b: self.rank.get((a, b))
        while True:
            ranked = [(r, i) for i, pair in enumerate(zip(symbols, symbols[1:]))
                      if (r := rank(*pair)) is not None]
            if not ranked:
                break
            i = min(ranked)[1]
            symbols[i:i + 2] = [symbols[i] + symbols[i + 1]]
        for s in symbols:
            ids += [self.ids[s]] if s in self.ids else [self.ids[f"<0x{b:02X}>"] for b in s.encode()]
        return ids

    def piece(self, token):
        """The bytes a token adds to a text."""
        if self.types[token] in (2, 3):  # unknown, control
            return b""
        text = self.tokens[token]
        if self.types[token] == 6:
            return bytes([int(text[3:5], 16)])
        if self.kind == "llama":
            return text.replace("\u2581", " ").encode()
        return bytes(self.bytes[letter] for letter in text)

    def decode(self, tokens):
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")


@dataclass(frozen=True)
class Prior:
    """p0: the model's distribution after bans, bias, temperature, top-k and top-p, renormalised."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: dict = field(default_factory=dict)

    def log_p0(self, logits, eos, n_before):
        """log p0 of every next token, given that n_before tokens of the text are already there."""
        x = np.array(logits, np.float64)
        for token, bias in self.logit_bias.items():
            x[int(token)] += bias
        if self.ignore_eos or n_before < self.min_tokens:
            x[eos] = -np.inf
        x /= self.temperature
        order = np.lexsort((np.arange(len(x)), -x))  # by logit, ties: lower ids first
        if 0 < self.top_k < len(x):
            x[order[self.top_k:]] = -np.inf
        if self.top_p < 1:
            reached = np.cumsum(np.exp(log_softmax(x))[order])
            kept = int(np.searchsorted(reached, self.top_p)) + 1
            x[order[kept:]] = -np.inf
        return log_softmax(x)

    def fields(self):
        """As fields of a request: only what differs from the defaults."""
        default = Prior()
        given = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        if "logit_bias" in given:
            given["logit_bias"] = {str(k): v for k, v in self.logit_bias.items()}
        return given
