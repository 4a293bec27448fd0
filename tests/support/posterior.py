"""The target of a request by brute force: every text, its prior, its potentials, the exact log Z.

A Problem is what a request of /v1/sample says, field for field, over a reference model small enough
to enumerate. Texts are tuples of token ids after the prompt, EOS and inserted tokens included.
"""
import re
from dataclasses import dataclass, field, replace

import numpy as np

from .reference import Model, Prior, log_sum_exp

NEVER = float("-inf")


@dataclass(frozen=True)
class Text:
    tokens: tuple = ()
    token_log_p: tuple = ()  # of each token; None where it was inserted and not weighed
    log_p: float = 0.0  # of the drawn tokens
    log_observed: float = 0.0  # of the observed ones
    stopped: bool = False
    holes: tuple = ()  # (name, text) of every finished hole


def weigh(weight, x):
    """weight * x with 0 * -inf = 0."""
    return 0.0 if weight == 0 else weight * x


@dataclass
class Problem:
    model: Model
    prompt: tuple  # ids
    prior: Prior = Prior()
    max_tokens: int = 4
    stop: tuple = ()
    segments: tuple = ()
    potential: tuple = ()
    _texts: list = field(default=None, repr=False)

    # ---------------------------------------------------------------------------- the request

    def fields(self):
        """The same as fields of a request."""
        fields = {"prompt": list(self.prompt), **self.prior.fields()}
        if self.segments:
            fields["segments"] = list(self.segments)
        else:
            fields["max_tokens"] = self.max_tokens
            if self.stop:
                fields["stop"] = list(self.stop)
        if self.potential:
            fields["potential"] = list(self.potential)
        return fields

    # ---------------------------------------------------------------------------- enumeration

    def _log_p0(self, prefixes, n_before):
        """log p0 of the next token after each of some texts; n_before counts their drawn tokens."""
        eos = self.model.tokenizer.eos
        logits = self.model.next_logits([self.prompt + p for p in prefixes])
        return [self.prior.log_p0(x, eos, n) for x, n in zip(logits, n_before)]

    def forced(self, prefix, tokens, n_before=0):
        """log p0 of each of some tokens, one after the other, after prompt + prefix."""
        out = []
        for i, token in enumerate(tokens):
            row = self._log_p0([tuple(prefix) + tuple(tokens[:i])], [n_before + i])[0]
            out.append(float(row[token]))
        return out

    def _insert(self, texts, segment):
        observed = "observe" in segment
        given = segment["observe" if observed else "text"]
        tokens = given if isinstance(given, (list, tuple)) else self.model.tokenizer.encode(given)
        for t in texts:
            log_p = self.forced(t.tokens, tokens, len(t.tokens)) if observed else [None] * len(tokens)
            yield Text(t.tokens + tuple(tokens), t.token_log_p + tuple(log_p), t.log_p,
                       t.log_observed + (sum(log_p) if observed else 0.0), t.stopped, t.holes)

    def _draw(self, texts, name, max_tokens, stop):
        """All ways to fill a hole behind each of the texts."""
        eos, decode = self.model.tokenizer.eos, self.model.tokenizer.decode
        live = [(t, len(t.tokens)) for t in texts]  # with where its hole starts
        for n in range(1, max_tokens + 1):
            rows = self._log_p0([t.tokens for t, _ in live], [len(t.tokens) for t, _ in live])
            grown = []
            for (t, start), row in zip(live, rows):
                for token in np.flatnonzero(np.isfinite(row)):
                    log_p = float(row[token])
                    tokens = t.tokens + (int(token),)
                    hole = decode(tokens[start:])
                    stopped = token == eos or any(s in hole for s in stop)
                    ended = stopped or n == max_tokens
                    u = Text(tokens, t.token_log_p + (log_p,), t.log_p + log_p, t.log_observed,
                             bool(stopped), t.holes + (((name, hole),) if ended else ()))
                    if ended:
                        yield u
                    else:
                        grown.append((u, start))
            live = grown

    def texts(self):
        """Every text of positive prior probability (and every observation, however unlikely)."""
        if self._texts is None:
            texts = [Text()]
            plain = {"sample": "", "max_tokens": self.max_tokens, "stop": self.stop}
            for segment in self.segments or (plain,):
                if "sample" in segment:
                    texts = list(self._draw(texts, segment["sample"], segment["max_tokens"],
                                            segment.get("stop", ())))
                else:
                    texts = list(self._insert(texts, segment))
            self._texts = texts
        return self._texts

    # ----------------------------------------------------------------------------- potentials

    def log_phi(self, tokens):
        """Sum of the weighted log-potentials of a text, without what was observed."""
        return sum(weigh(p.get("weight", 1.0), self._one(p, tuple(tokens))) for p in self.potential)

    def _one(self, p, tokens):
        tokenizer, kind = self.model.tokenizer, p["type"]
        text = tokenizer.decode(tokens)
        miss = NEVER if p.get("soft") is None else p["soft"]
        if kind == "continuation":
            return sum(self.forced(tokens, tokenizer.encode(p["text"]), len(tokens)))
        if kind == "lexicon":
            bias = {}
            for key, value in p["bias"].items():
                (token,) = [int(key[1:])] if key.startswith("#") else tokenizer.encode(key)
                bias[token] = value
            return sum(bias.get(t, 0.0) for t in tokens)
        if kind == "contains":
            return 0.0 if p["text"] in text else miss
        if kind == "regex":
            return 0.0 if re.fullmatch(p["pattern"], text) else miss
        if kind == "judge":
            return self._judge(p, text)
        if kind == "tokens":
            return p["log_phi"] if any(tokens[:len(i)] == tuple(i) for i in p["ids"]) else 0.0
        raise ValueError(f"no such potential: {kind}")

    def _judge(self, p, text):
        tokenizer = self.model.tokenizer
        filled = p["template"].replace("{prompt}", tokenizer.decode(self.prompt))
        context = tuple(tokenizer.encode(filled.replace("{text}", text), start=True))
        judge = Problem(self.model, context, replace(self.prior, min_tokens=0))
        log_p = [sum(judge.forced((), tokenizer.encode(a))) for a in [p["answer"], *p.get("against", [])]]
        return log_p[0] - (log_sum_exp(log_p) if "against" in p else 0.0)

    # ------------------------------------------------------------------------------ the target

    def solve(self):
        texts = self.texts()
        log_prior = np.array([t.log_p for t in texts])
        log_phi = np.array([self.log_phi(t.tokens) + t.log_observed for t in texts])
        return Solution(texts, log_prior, log_phi)


class Solution:
    """Arrays over the texts, in the order of enumeration."""

    def __init__(self, texts, log_prior, log_phi):
        self.texts, self.log_prior, self.log_phi = texts, log_prior, log_phi
        self.log_target = log_prior + log_phi
        self.log_z = float(log_sum_exp(self.log_target))
        self.posterior = np.exp(self.log_target - self.log_z) if self.log_z > NEVER else None
        self.index = {t.tokens: i for i, t in enumerate(texts)}

    def expect(self, f):
        """E_sigma[f(Text)]"""
        return float(sum(p * f(t) for p, t in zip(self.posterior, self.texts) if p > 0))

    def total_variation(self, weights):
        """Of the normalised weights (tokens -> weight) from the posterior. A text outside the
        enumeration is an error of its own: KeyError."""
        estimate = np.zeros(len(self.texts))
        for tokens, weight in weights.items():
            estimate[self.index[tokens]] += weight
        return 0.5 * float(np.abs(estimate / estimate.sum() - self.posterior).sum())

    def kl_prior(self):
        """KL(sigma | p0): how hard the problem is for the base proposal."""
        inside = self.posterior > 0
        return float((self.posterior[inside] * (self.log_phi[inside] - self.log_z)).sum())

    def entropy(self):
        inside = self.posterior[self.posterior > 0]
        return float(-(inside * np.log(inside)).sum())
