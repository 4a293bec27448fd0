#!/usr/bin/env python3
"""The decode step of bench_decode in PyTorch, for comparison: the same shapes, random weights, prompt and draws.

    tests/gpu/torch_decode.py SHAPE PARTICLES... [--device cpu]

bf16, one CUDA graph a step, a static cache. Attention in two ways, and the faster is reported: products with the prompt's
keys and values, of which there is one copy for all rows, and with each row's own; and PyTorch's fused attention, for
which every row has a copy of the prompt. A step draws from the softmax of the logits and brings the tokens to the host.
It neither weighs nor resamples. A line for each number of particles: shape, particles, ms a step (the median of 32).
"""

import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F

SHAPES = {  # layers, dim, ffn, heads, kv heads, vocabulary
    "tiny": (3, 64, 96, 4, 2, 515),
    "135m": (30, 576, 1536, 9, 3, 49152),
    "1b": (16, 2048, 8192, 32, 8, 128256),
    "8b": (32, 4096, 14336, 32, 8, 128256),
}
PROMPT, OWN, STEPS = 32, 64, 32


class Model:
    def __init__(self, shape, device):
        layers, self.dim, ffn, self.heads, self.kv_heads, vocab = SHAPES[shape]
        self.hd = self.dim // self.heads
        self.device = device
        kv = self.kv_heads * self.hd
        self.layers = [(self.matrix(self.dim + 2 * kv, self.dim), self.matrix(self.dim, self.dim),
                        self.matrix(2 * ffn, self.dim), self.matrix(self.dim, ffn)) for _ in range(layers)]
        self.embed, self.head = self.matrix(vocab, self.dim), self.matrix(vocab, self.dim)
        self.norm = torch.ones(self.dim, dtype=torch.bfloat16, device=device)
        angle = torch.outer(torch.arange(PROMPT + OWN), 10000.0 ** (-torch.arange(0, self.hd, 2) / self.hd))
        self.rope = torch.stack([angle.cos(), angle.sin()]).to(device)

    def matrix(self, rows, columns):
        return torch.empty(rows, columns, dtype=torch.bfloat16, device=self.device).normal_(0, 0.02)

    def rotate(self, x, at):
        """x (rows, heads, head_dim); at (1) its position, on the device."""
        cos, sin = self.rope[:, at]
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(torch.bfloat16)


class Decoder:
    """k rows; `fused`: PyTorch's attention over a cache in which each row has the prompt."""

    def __init__(self, model, k, fused):
        self.m, self.k, self.fused = model, k, fused
        length = PROMPT + OWN if fused else OWN
        cache = (len(model.layers), 2, k, model.kv_heads, length, model.hd)
        prompt = (len(model.layers), 2, 1, model.kv_heads, PROMPT, model.hd)
        self.cache = torch.randn(cache, dtype=torch.bfloat16, device=model.device)
        self.prompt = torch.randn(prompt, dtype=torch.bfloat16, device=model.device)
        self.token = torch.arange(k, device=model.device) % model.embed.shape[0]
        self.at = torch.zeros(1, dtype=torch.long, device=model.device)  # of the token among its row's own

    def attend(self, q, layer):
        """q (k, heads, head_dim)."""
        keys, values = self.cache[layer]
        seen = torch.arange(keys.shape[2], device=q.device) <= self.at + (PROMPT if self.fused else 0)
        if self.fused:
            return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=seen[None],
                                                  enable_gqa=True).reshape(self.k, -1)
        m = self.m
        q = q.view(self.k, m.kv_heads, -1, m.hd)
        of_all = q.transpose(0, 1).reshape(m.kv_heads, -1, m.hd)  # the prompt's keys meet all rows at once
        shared = (of_all @ self.prompt[layer, 0, 0].mT).view(m.kv_heads, self.k, -1, PROMPT).transpose(0, 1)
        own = (q @ keys.mT).masked_fill(~seen, float("-inf"))
        p = (torch.cat([shared, own], -1).float() * m.hd ** -0.5).softmax(-1).to(torch.bfloat16)
        p_shared, p_own = p.split([PROMPT, OWN], -1)
        of_all = p_shared.transpose(0, 1).reshape(m.kv_heads, -1, PROMPT) @ self.prompt[layer, 1, 0]
        shared = of_all.view(m.kv_heads, self.k, -1, m.hd).transpose(0, 1)
        return (shared + p_own @ values).reshape(self.k, -1)

    def step(self):
        m, x = self.m, self.m.embed[self.token]
        kv = m.kv_heads * m.hd
        slot = self.at + (PROMPT if self.fused else 0)
        for layer, (qkv, out, gate_up, down) in enumerate(m.layers):
            h = F.rms_norm(x, (m.dim,), m.norm, 1e-5)
            q, k, v = (h @ qkv.mT).split([m.dim, kv, kv], -1)
            q = m.rotate(q.view(self.k, -1, m.hd), self.at + PROMPT)
            k = m.rotate(k.view(self.k, -1, m.hd), self.at + PROMPT)
            self.cache[layer, 0].index_copy_(2, slot, k[:, :, None])
            self.cache[layer, 1].index_copy_(2, slot, v.view(self.k, -1, 1, m.hd))
            x = x + self.attend(q, layer) @ out.mT
            gate, up = (F.rms_norm(x, (m.dim,), m.norm, 1e-5) @ gate_up.mT).chunk(2, -1)
            x = x + (F.silu(gate) * up) @ down.mT
        logits = F.rms_norm(x, (m.dim,), m.norm, 1e-5) @ m.head.mT
        p = logits.float().softmax(-1)
        self.token.copy_((p / torch.empty_like(p).exponential_()).argmax(-1))  # multinomial() may wait for the device
        self.at.add_(1)

    def recorded(self):
        """The step as one CUDA graph, after a few that warm up."""
        if self.m.device != "cuda":
            return self.step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


@torch.no_grad()
def median_ms(model, k, fused):
    decoder = Decoder(model, k, fused)
    step, took = decoder.recorded(), []
    decoder.at.fill_(OWN - STEPS - 2)
    for _ in range(STEPS + 2):
        start = time.perf_counter()
        step()
        decoder.token.cpu()
        took.append(1e3 * (time.perf_counter() - start))
    return statistics.median(took[2:])


def measure(model, k, fused):
    """ms, or None where it does not fit or this PyTorch cannot do it."""
    try:
        return median_ms(model, k, fused)
    except RuntimeError as error:
        print(f"# {k} particles, {'fused' if fused else 'shared'}: {str(error).splitlines()[0]}", flush=True)
        return None
    finally:
        if model.device == "cuda":
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("particles", type=int, nargs="+")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    model = Model(args.shape, args.device)
    print(f"# torch {torch.__version__}: shape particles ms/step (shared prompt, fused attention)")
    measured = 0
    for k in args.particles:
        both = [measure(model, k, fused) for fused in (False, True)]
        measured += any(both)
        if any(both):
            print(f"{args.shape} {k} {min(t for t in both if t):.3f} "
                  f"({', '.join(f'{t:.3f}' if t else '-' for t in both)})", flush=True)
    sys.exit(0 if measured else 1)


if __name__ == "__main__":
    main()
