"""Logistic regression: on generated data, several seeds and settings at once; the parity of digits."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import softplus

from fallline.core.keys import Key


def logistic_data(rows: int, size: int, seeds: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian features ``(rows, seeds, size)`` and labels ±1 ``(rows, seeds)`` from a logistic model with standard normal weights."""
    generator = Key(seed).fold("logistic").generator()
    features = torch.randn(rows, seeds, size, dtype=torch.float64, generator=generator)
    truth = torch.randn(seeds, size, dtype=torch.float64, generator=generator)
    chances = torch.sigmoid((features * truth).sum(-1))
    return features, 2 * (torch.rand(rows, seeds, dtype=torch.float64, generator=generator) < chances).double() - 1


def losses(weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Mean logistic loss, ``(…, seeds)`` for weights ``(…, seeds, size)``."""
    return softplus(-labels * torch.einsum("nsf,...sf->...ns", features, weights)).mean(-2)


def gradients(weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the mean loss, like the weights."""
    slopes = -labels * torch.sigmoid(-labels * torch.einsum("nsf,...sf->...ns", features, weights)) / len(labels)
    return torch.einsum("...ns,nsf->...sf", slopes, features)


def least(features: Tensor, labels: Tensor) -> Tensor:
    """The least losses, by Newton's method."""
    w = torch.zeros(features.shape[1:], dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid((features * w).sum(-1))
        hessian = torch.einsum("ns,nsf,nsg->sfg", p * (1 - p) / len(labels), features, features)
        w = w - torch.linalg.solve(hessian, gradients(w, features, labels)[..., None])[..., 0]
    return losses(w, features, labels)


def digits_parity(features: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Digits with a constant (d = 65), or that many random cosine features; labels ±1 by parity."""
    digits = load_digits()
    pixels = torch.tensor(digits.data / 16, dtype=torch.float64)
    labels = 1 - 2 * torch.tensor(digits.target % 2, dtype=torch.float64)
    if features is not None:
        generator = Key(seed).fold("features", features).generator()
        weights = torch.randn(64, features - 1, dtype=torch.float64, generator=generator) / 4
        shifts = 6.3 * torch.rand(features - 1, dtype=torch.float64, generator=generator)
        pixels = torch.cos(pixels @ weights + shifts)
    return torch.cat([pixels, torch.ones(len(pixels), 1, dtype=torch.float64)], 1), labels
