"""Small image and signal classification: scikit-learn's digits, and MNIST-1D."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fallline.core.budget import Budget
from fallline.core.keys import Key
from fallline.core.objective import Training, accuracy
from fallline.problems.extras import data_package, undisturbed_generators


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module whose initial weights depend on the seed alone, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("weights").integer())
        return build()


def digits_split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return scikit-learn's 1,797 digits, pixels in [0, 1], as (1,437 for training, 360 for validation) in a fixed shuffle."""
    digits = data_package("sklearn.datasets", "scikit-learn").load_digits()
    order = torch.randperm(len(digits.target), generator=Key(0).fold("digits").generator())
    pixels = torch.tensor(digits.data / 16, dtype=torch.float32)[order]
    labels = torch.tensor(digits.target, dtype=torch.long)[order]
    return (pixels[:1437], labels[:1437]), (pixels[1437:], labels[1437:])


def digits_mlp(seed: int = 0, widths: tuple[int, ...] = (64, 64), batch_size: int = 64) -> Training:
    """Digits, a ReLU network 64-64-64-10.

    Input 8×8 pixels in [0, 1]; metric the validation cross-entropy; the accuracy is observed beside it (about 0.98 when well trained);
    600 steps of 64.
    """
    train, valid = digits_split()
    sizes = (64, *widths, 10)

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.Linear(a, b), *([nn.ReLU()] if i < len(sizes) - 2 else [])]
        return nn.Sequential(*layers)

    return Training(_seeded(build, seed), cross_entropy, train, validation=valid, batch_size=batch_size,
                    metrics={"accuracy": accuracy}, name="digits-mlp", budget=Budget(steps=600))


def digits_cnn(seed: int = 0) -> Training:
    """Digits, two 3×3 convolutions (16 and 32 channels), batch normalisation, and a linear head.

    Input 1×8×8 pixels; metric the validation cross-entropy; the accuracy is observed beside it (about 0.99); 600 steps of 64.
    """
    train, valid = ((x.view(-1, 1, 8, 8), y) for x, y in digits_split())

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(128, 10))

    return Training(_seeded(build, seed), cross_entropy, train, validation=valid, batch_size=64,
                    metrics={"accuracy": accuracy}, name="digits-cnn", budget=Budget(steps=600))


def mnist1d(seed: int = 0) -> Training:
    """MNIST-1D (generated): signals of length 40 in ten classes, a small convolutional network.

    Metric the validation cross-entropy; the accuracy is observed beside it (0.1 by chance, above 0.9 for good networks); 2,000 steps
    of 100. The data are the package's default set, the same at every seed.
    """
    package = data_package("mnist1d.data", "mnist1d")
    with undisturbed_generators():
        data = package.make_dataset(package.get_dataset_args())

    def tensors(x: str, y: str) -> tuple[Tensor, Tensor]:
        return torch.tensor(data[x], dtype=torch.float32).unsqueeze(1), torch.tensor(data[y], dtype=torch.long)

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(1, 25, 5, stride=2, padding=1), nn.ReLU(), nn.Conv1d(25, 25, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv1d(25, 25, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(125, 10))

    return Training(_seeded(build, seed), cross_entropy, tensors("x", "y"), validation=tensors("x_test", "y_test"), batch_size=100,
                    metrics={"accuracy": accuracy}, name="mnist1d", budget=Budget(steps=2_000))
