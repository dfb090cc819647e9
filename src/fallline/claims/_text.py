"""Generated text and a small decoder for it."""

from __future__ import annotations

import torch
from torch import Tensor

import fallline as fl
from fallline.core.keys import Key
from fallline.problems.text import Decoder, token_loss

VOCABULARY, CONTEXT = 64, 16


def markov_text(length: int, key: Key) -> Tensor:
    """Seven symbols in ten follow from the one before by a fixed permutation, the others are drawn from Zipf's law."""
    generator = key.generator()
    follows = torch.randperm(VOCABULARY, generator=generator).tolist()
    frequencies = 1 / torch.arange(1, VOCABULARY + 1, dtype=torch.float64)
    drawn = torch.multinomial(frequencies, length, replacement=True, generator=generator).tolist()
    kept = (torch.rand(length, generator=generator) < 0.7).tolist()
    text = [drawn[0]]
    for symbol, keep in zip(drawn[1:], kept[1:], strict=True):
        text.append(follows[text[-1]] if keep else symbol)
    return torch.tensor(text)


def text_model(seed: int, width: int, depth: int, batch: int) -> fl.Training:
    """A decoder on 40,000 symbols, validated on 8,000 more."""
    windows = markov_text(48_000, Key(seed).fold("text")).unfold(0, CONTEXT + 1, 1)
    train, valid = windows[:40_000], windows[40_000::CONTEXT]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("weights").integer())
        model = Decoder(VOCABULARY, CONTEXT, width, heads=4, depth=depth)
    return fl.Training(model, token_loss, (train[:, :-1], train[:, 1:]), validation=(valid[:, :-1], valid[:, 1:]), batch_size=batch)
