"""A learned twist in float64: its file, log psi of every next token, the proposal it induces.

Written from the description of the file alone, like the reference model; what the server computes
with a twist is checked against this.
"""
import json
import struct
from pathlib import Path

import numpy as np

from .reference import log_softmax


def read_safetensors(path):
    """(metadata, tensors by name): eight bytes of length, a JSON header, the numbers."""
    raw = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header, data = json.loads(raw[8:8 + length]), raw[8 + length:]
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32", f"{name}: {entry['dtype']}"
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], "<f4").astype(float).reshape(entry["shape"])
    return metadata, tensors


def write_safetensors(path, metadata, tensors):
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in tensors.items():
        numbers = np.asarray(tensor, "<f4")
        offsets = [len(data), len(data) + numbers.nbytes]
        header[name] = {"dtype": "F32", "shape": list(numbers.shape), "data_offsets": offsets}
        data += numbers.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


class Twist:
    """condition: of a conditional twist, the hidden state after the ending that it is to foresee."""

    def __init__(self, path, condition=None):
        self.condition = condition
        self.metadata, tensors = read_safetensors(path)
        self.layers = [(tensors[f"layer.{i}.weight"], tensors[f"layer.{i}.bias"])
                       for i in range(int(self.metadata["layers"]))]
        self.log_sigmoid = self.metadata["activation"] == "log_sigmoid"
        self.calibration = tensors.get("calibration", np.zeros(int(self.metadata["max_tokens"])))

    def log_psi(self, hidden, n_before):
        """hidden (n, dim) of texts of n_before tokens -> log psi (n, vocab) with every next token."""
        x = hidden
        if self.condition is not None:
            x = np.column_stack([x, np.tile(self.condition, (len(x), 1))])
        for i, (w, b) in enumerate(self.layers):
            x = (x if i == 0 else np.maximum(x, 0)) @ w.T + b
        if self.log_sigmoid:
            x = -np.logaddexp(0, -x)
        return x + self.calibration[min(n_before, len(self.calibration) - 1)]


class Induced:
    """The proposal q(v | s) ~ p0(v | s) psi(s v) over all texts of a problem.

    log_q is that of each text, in the order of enumeration. Without a twist q is the prior."""

    def __init__(self, problem, twist=None):
        self.problem, self.solution = problem, problem.solve()
        texts = self.solution.texts
        rows = self._rows(twist, {t.tokens[:n] for t in texts for n in range(len(t.tokens))})
        self.log_q = np.array([sum(rows[t.tokens[:n]][v] for n, v in enumerate(t.tokens))
                               for t in texts])

    def _rows(self, twist, prefixes):
        """log q of the next token after each prefix."""
        model, prior, rows = self.problem.model, self.problem.prior, {}
        lengths = {len(p) for p in prefixes}
        for n in sorted(lengths):
            group = [p for p in prefixes if len(p) == n]
            contexts = [self.problem.prompt + p for p in group]
            log_p0 = np.array([prior.log_p0(x, model.tokenizer.eos, n)
                               for x in model.next_logits(contexts)])
            if twist is not None:
                log_p0 = log_softmax(log_p0 + twist.log_psi(np.array(model.next_hidden(contexts)), n))
            rows.update(zip(group, log_p0))
        return rows

    def kl_from_target(self):
        """KL(sigma | q)"""
        return self._kl(self.solution.log_target - self.solution.log_z, self.log_q)

    def kl_to_target(self):
        """KL(q | sigma); infinite where phi excludes a text that q does not."""
        return self._kl(self.log_q, self.solution.log_target - self.solution.log_z)

    def chi_square(self):
        """Of sigma from q: the variance of sigma/q under q."""
        log_sigma = self.solution.log_target - self.solution.log_z
        return float(np.exp(2 * log_sigma - self.log_q).sum()) - 1

    @staticmethod
    def _kl(log_a, log_b):
        inside = log_a > -np.inf
        with np.errstate(invalid="ignore"):
            return float((np.exp(log_a[inside]) * (log_a[inside] - log_b[inside])).sum())


class Tilt:
    """psi of a lexicon, as far as it tells next tokens apart."""

    def __init__(self, vocab, bias):
        self.bias = np.zeros(vocab)
        for token, value in bias.items():
            self.bias[token] = value

    def log_psi(self, hidden, n_before):
        return np.tile(self.bias, (len(hidden), 1))


# ------------------------------------------------------------------------------- the exact twist

def exact_log_psi(problem):
    """{prefix: log psi*(prefix + v) of every next token v}; 0 for a v that cannot come. psi* is what
    phi is expected to be, given how a text begins."""
    solution, log_p, ahead = problem.solve(), {}, {}
    for text, log_target in zip(solution.texts, solution.log_target):
        for n in range(1, len(text.tokens) + 1):
            prefix = text.tokens[:n]
            log_p[prefix] = sum(text.token_log_p[:n])
            ahead[prefix] = np.logaddexp(ahead.get(prefix, -np.inf), log_target)
    rows = {}
    for prefix, log_sum in ahead.items():
        row = rows.setdefault(prefix[:-1], np.zeros(problem.model.vocab))
        row[prefix[-1]] = log_sum - log_p[prefix]
    return rows


def exact_linear_head(problem):
    """(weight, bias) of a linear head that gives psi*, for problems of fewer prefixes than dim."""
    rows = exact_log_psi(problem)
    contexts = [problem.prompt + prefix for prefix in rows]
    hidden = np.array(problem.model.next_hidden(contexts))
    with_one = np.column_stack([hidden, np.ones(len(hidden))])
    solution, _, rank, _ = np.linalg.lstsq(with_one, np.array(list(rows.values())), rcond=None)
    assert rank == len(rows), f"{len(rows)} prefixes have hidden states of rank {rank}"
    return solution[:-1].T, solution[-1]


def replace_layers(path, layers):
    """Other numbers in a twist's file: (weight, bias) of each layer, and no calibration."""
    metadata, _ = read_safetensors(path)
    tensors = {}
    for i, (weight, bias) in enumerate(layers):
        tensors |= {f"layer.{i}.weight": weight, f"layer.{i}.bias": bias}
    write_safetensors(path, metadata, tensors)
