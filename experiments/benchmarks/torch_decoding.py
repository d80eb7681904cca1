"""The decoders of `decoding` in PyTorch: ``torch_decoding.py CASE KIND eager|compile``.

Plain modules that compute what transformers' Llama does. Eager, the cache grows by
concatenation, as transformers' default does; compiled, it is preallocated, as its
StaticCache, so that every step is one program. `torch_side` says how to make the
environment.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from decoding_cases import CASES, Case
from torch import nn
from worker import serve


class Cache:
    """Keys and values of every layer; those so far, or with room for all to come."""

    def __init__(self, case: Case, static: bool):
        self.static, self.length = static, 0
        self.layers: list = [None] * case.layers
        if static:
            shape = (case.batch, case.kv_heads, case.slots, case.head_dim)
            self.layers = [
                (torch.zeros(shape), torch.zeros(shape)) for _ in self.layers
            ]

    def update(self, layer: int, key, value, places):
        """Return a layer's keys and values with the new ones."""
        if self.static:
            for kept, new in zip(self.layers[layer], (key, value), strict=True):
                kept.index_copy_(2, places, new)
        elif self.layers[layer] is None:
            self.layers[layer] = key, value
        else:
            old_key, old_value = self.layers[layer]
            self.layers[layer] = (
                torch.cat([old_key, key], 2),
                torch.cat([old_value, value], 2),
            )
        return self.layers[layer]


class RMSNorm(nn.Module):
    """The root-mean-square norm."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        """Return as many features."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate(x, cos, sin):
    """Turn every pair of features by its angle."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Block(nn.Module):
    """Grouped-query attention and a gated MLP."""

    def __init__(self, case: Case, layer: int):
        super().__init__()
        self.case, self.layer = case, layer
        width, dim = case.width, case.head_dim
        linear = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q = linear(width, case.heads * dim)
        self.k = linear(width, case.kv_heads * dim)
        self.v = linear(width, case.kv_heads * dim)
        self.o = linear(case.heads * dim, width)
        self.gate, self.up = linear(width, case.hidden), linear(width, case.hidden)
        self.down = linear(case.hidden, width)

    def forward(self, x, cache, places, cos, sin, mask):
        """Return the features after the block."""
        batch, length, _ = x.shape
        y = self.norm1(x)
        q, k, v = (
            layer(y).view(batch, length, -1, self.case.head_dim).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = cache.update(self.layer, k, v, places)
        y = F.scaled_dot_product_attention(
            *(q, k, v), attn_mask=mask, is_causal=length > 1, enable_gqa=True
        )
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Embedding, blocks, norm and head."""

    def __init__(self, case: Case):
        super().__init__()
        self.embed = nn.Embedding(case.vocabulary, case.width)
        self.blocks = nn.ModuleList(Block(case, i) for i in range(case.layers))
        self.norm = RMSNorm(case.width)
        self.head = nn.Linear(case.width, case.vocabulary, bias=False)
        base = 10_000.0 ** -(torch.arange(0, case.head_dim, 2) / case.head_dim)
        angles = torch.arange(case.slots)[:, None] * torch.cat([base, base])
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, cache, places, mask):
        """Return the logits of the last token."""
        x = self.embed(ids)
        cos, sin = self.cos[places], self.sin[places]
        for block in self.blocks:
            x = block(x, cache, places, cos, sin, mask)
        return self.head(self.norm(x[:, -1:]))[:, 0]


def build(name: str, kind: str) -> Callable[[int], None]:
    """Return ``steps -> None``, which reads, or continues, that many batches."""
    case, static = CASES[name], sys.argv[3] == "compile"
    torch.manual_seed(0)
    model = Llama(case).eval()
    prompt = case.prompt if kind == "prefill" else case.short
    ids = torch.randint(0, case.vocabulary, (case.batch, prompt))
    read, step = model.forward, model.forward
    if static:
        read, step = torch.compile(model.forward), torch.compile(model.forward)
    slots = torch.arange(case.slots)

    def generate(new: int) -> None:
        cache = Cache(case, static and kind == "decode")
        logits = read(ids, cache, torch.arange(prompt), None)
        token = logits.argmax(-1)
        for place in range(prompt, prompt + new - 1):
            places = torch.tensor([place])
            mask = (slots <= place)[None, None, None] if static else None
            token = step(token[:, None], cache, places, mask).argmax(-1)

    @torch.inference_mode()
    def run(steps: int) -> None:
        for _ in range(steps):
            generate(1 if kind == "prefill" else case.new)

    return run


if __name__ == "__main__":
    serve(build)
