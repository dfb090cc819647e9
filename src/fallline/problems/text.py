"""Byte-level language models on text that comes with Python: a small decoder-only transformer.

Pre-norm blocks, causal attention, GELU, no biases in the matrices. Attention is written out, so that everything can be
differentiated twice (fused attention cannot).
"""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from fallline.core.budget import Budget
from fallline.core.keys import Key
from fallline.core.objective import Training


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """A decoder-only transformer over bytes, ``(batch, length) -> (batch, length, vocabulary)``."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.embedding, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over all tokens, in nats."""
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


@cache
def _topics() -> bytes:
    from pydoc_data.topics import topics

    return "\n".join(topics.values()).encode()


@cache
def _standard_library() -> bytes:
    root = Path(sysconfig.get_path("stdlib"))
    return b"\n".join(path.read_bytes() for path in sorted(root.glob("*.py")))[:4_000_000]


def _windows(text: Tensor, length: int, stride: int) -> tuple[Tensor, Tensor]:
    windows = text.unfold(0, length + 1, stride)  # views into the text: overlapping windows cost no memory
    return windows[:, :-1], windows[:, 1:]


def _language_model(name: str, text: bytes, split: int, seed: int, *, vocabulary: int, length: int, width: int, heads: int,
                    depth: int, batch_size: int, windows: int, budget: Budget) -> Training:
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().clamp_(max=vocabulary - 1)
    held_out = tokens[split:]
    valid = _windows(held_out, length, max(length, len(held_out) // windows))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("weights").integer())
        model = Decoder(vocabulary, length, width, heads, depth)
    return Training(model, token_loss, _windows(tokens[:split], length, 1), validation=valid, batch_size=batch_size, name=name,
                    budget=budget)


def tiny_lm(seed: int = 0) -> Training:
    """Python's help topics, 2 blocks of width 48 with 4 heads, context 32, 128 symbols (larger bytes are clamped).

    Trained on the first 400 kB in batches of 16 windows, validated on 256 windows of the rest; loss in nats per byte (about 2.3
    after its 150 steps, 5.2 at the start).
    """
    return _language_model("tiny-lm", _topics(), 400_000, seed, vocabulary=128, length=32, width=48, heads=4, depth=2,
                           batch_size=16, windows=256, budget=Budget(steps=150))


def byte_lm(seed: int = 0) -> Training:
    """The source of Python's standard library (its top-level modules), 4 blocks of width 128 with 4 heads, context 64.

    The first 90 % of up to 4 MB are for training in batches of 16 windows; loss in nats per byte on 64 windows of the rest, so that
    looking at it costs little more than a step; 500 steps.
    """
    text = _standard_library()
    return _language_model("byte-lm", text, len(text) * 9 // 10, seed, vocabulary=256, length=64, width=128, heads=4, depth=4,
                           batch_size=16, windows=64, budget=Budget(steps=500))
