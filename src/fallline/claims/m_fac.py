"""M-FAC: exact products with the inverse Fisher matrix, at a price linear in the dimension, that prune better than magnitudes."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, between, claim, exactly, recorded
from fallline.claims._networks import at_rates, trained_networks
from fallline.claims._operations import operations
from fallline.core.fisher_window import FisherWindow, StaticFisher
from fallline.core.keys import Key
from fallline.core.objective import accuracy
from fallline.core.tree import Tree
from fallline.optim import MFAC, Adam
from fallline.problems import digits_mlp
from fallline.surgery import obs_prune

PAPER = Paper(
    slug="m-fac",
    title="M-FAC: Efficient Matrix-Free Approximations of Second-Order Information",
    arxiv="2107.03356",
    year=2021,
    room="optim",
    methods=("optim.MFAC", "surgery.obs_prune"),
    headline="beats WoodFisher and K-FAC's kind at a lower cost for pruning ResNet-50 and MobileNet, and as an optimizer matches or "
    "exceeds tuned SGD and Adam on small ResNets and on fine-tuning BERT",
)
DAMPS = (1e-5, 1e-4, 1e-3, 1e-2)
TRAINED = 1157
Split = Sequence[Tensor]


def rows(m: int, d: int, seed: int) -> Tensor:
    """Normal gradients."""
    return torch.randn(m, d, dtype=torch.float64, generator=Key(seed).generator())


def relative_errors(seed: int) -> tuple[float, float]:
    """Of F⁻¹ x against the dense inverse at d = 200 and m = 32: of a window after 50 gradients, and of the static recursion."""
    gradients, x, damp = rows(50, 200, seed), rows(1, 200, seed + 1000)[0], 1e-5
    window = FisherWindow(32, 200, damp, dtype=torch.float64)
    for g in gradients:
        window.push(g)
    kept = gradients[-32:]
    dense = damp * torch.eye(200, dtype=torch.float64) + kept.mT @ kept / 32
    exact = torch.linalg.solve(dense, x)
    found = window.ihvp(x), StaticFisher(kept, damp).ihvp(x)
    return tuple(float((u - exact).norm() / exact.norm()) for u in found)  # type: ignore[return-value]


@claim("products with the inverse at d = 200, m = 32 are those of the dense inverse to 1e-8, by both algorithms")
def exactness(scale: Scale, seed: int) -> Evidence:
    dynamic, static = zip(*(relative_errors(s) for s in range(seed, seed + 3)), strict=True)
    return Evidence([at_most("relative error, window", dynamic, 1e-8), at_most("relative error, static", static, 1e-8)],
                    notes=["Normal gradients, λ = 1e-5, a window that has gone around. Both scales are the same."])


def dynamic_operations(m: int, d: int) -> int:
    """Of one gradient more and one product, in a full window."""
    window = FisherWindow(m, d, 1e-5, dtype=torch.float64)
    g, x = rows(2, d, 0)
    return operations(lambda: window.push(g).ihvp(x))


def static_operations(m: int, d: int) -> tuple[int, int, int]:
    """Of the set-up, of a product, of an entry."""
    gradients = rows(m + 1, d, 0)
    static = StaticFisher(gradients[:m], 1e-5)
    return (operations(lambda: StaticFisher(gradients[:m], 1e-5)), operations(lambda: static.ihvp(gradients[m])),
            operations(lambda: static.element(0, d - 1)))


def exponent(low: float, high: float) -> float:
    """Of the growth where something has doubled."""
    return math.log2(high / low)


@claim("a gradient more and a product at d = 8e5 cost at most 6 times those at 2e5: O(dm + m³), where the static set-up is O(dm²)")
def price(scale: Scale, seed: int) -> Evidence:
    m, d = 32, 200_000 if scale is Scale.QUICK else 2_000_000
    near, far = dynamic_operations(m, d), dynamic_operations(m, 4 * d)
    small, wide, long = static_operations(64, 2_000), static_operations(64, 4_000), static_operations(128, 2_000)
    window = FisherWindow(m, d, 1e-5)
    return Evidence([
        at_most("operations, 4 d / d", far / near, 6.0),
        between("exponent of m, push and product, d = 1e5", exponent(dynamic_operations(16, 100_000), dynamic_operations(32, 100_000)),
                0.9, 1.1),
        between("exponent of m, push and product, d = 1", exponent(dynamic_operations(256, 1), dynamic_operations(512, 1)), 2.8, 3.1),
        *(between(f"exponent of d, static {what}", exponent(small[i], wide[i]), power - 0.1, power + 0.1)
          for i, (what, power) in enumerate((("set-up", 1), ("product", 1), ("entry", 0)))),
        *(between(f"exponent of m, static {what}", exponent(small[i], long[i]), power - 0.1, power + 0.1)
          for i, (what, power) in enumerate((("set-up", 2), ("product", 1), ("entry", 1)))),
        exactly("bytes of the window / (4 d m + 8 m²)", window.memory / (4 * d * m + 8 * m**2), 1.0),
        recorded("megabytes of the window", window.memory / 1e6),
        recorded("bytes of the optimizer's state a parameter, m = 512", MFAC([nn.Parameter(torch.empty(10**6))]).memory / 1e6),
    ], notes=[f"The paper's cost is time; operations of linear algebra are counted here, seconds are in benchmarks/fisher_window.py. "
              f"d = {d:,}, m = {m}; the static algorithm at m = 64 and 128, d = 2,000 and 4,000."])


@functools.cache
def networks(seed: int) -> list[Pruning]:
    """Five networks, trained by Adam for 600 batches of 64 of the digits that are neither for λ nor for the test."""
    wholes = [digits_mlp(s, widths=(128,)) for s in range(seed, seed + 5)]
    x, y = wholes[0].data
    problems = [fl.Training(w.model, cross_entropy, (x[:TRAINED], y[:TRAINED]), batch_size=64) for w in wholes]
    (weights,) = trained_networks(problems, Adam, at_rates([3e-3]), 600, seed)
    return [Pruning(w.model, tree, problems[0].data, (x[TRAINED:], y[TRAINED:]), w.validation, s)
            for s, (w, tree) in enumerate(zip(wholes, weights, strict=True), seed)]


class Pruning:
    """A network trained on digits, to be pruned by 256 gradients of single ones."""

    def __init__(self, model: nn.Module, weights: Tree, data: Split, chosen: Split, test: Split, seed: int) -> None:
        self.model = copy.deepcopy(model)
        self.model.load_state_dict(weights)
        self.data, self.chosen, self.test, self.seed = data, chosen, test, seed

    def grads(self, model: nn.Module, round: int) -> dict[str, Tensor]:
        """Of the weight matrices, on samples drawn for the round."""
        some = torch.randperm(TRAINED, generator=Key(self.seed).fold("gradients", round).generator())[:256]
        found = fl.Objective(model, cross_entropy)(self.data[0][some], self.data[1][some]).per_sample_gradients()
        return {name: g for name, g in found.items() if g.ndim == 3}

    @torch.no_grad()
    def accuracy(self, model: nn.Module, split: Split) -> float:
        """In percent."""
        return 100 * float(accuracy(model(split[0]), split[1]))

    def by_magnitude(self, sparsity: float) -> float:
        """Accuracy without the smallest weights of both matrices together."""
        model = copy.deepcopy(self.model)
        weights = [p for p in model.parameters() if p.ndim == 2]
        sizes = torch.cat([p.detach().abs().reshape(-1) for p in weights])
        least = sizes.argsort(stable=True)[: int(sparsity * len(sizes))]
        kept = torch.ones_like(sizes).index_fill(0, least, 0.0).split([p.numel() for p in weights])
        with torch.no_grad():
            for p, mask in zip(weights, kept, strict=True):
                p.mul_(mask.view(p.shape))
        return self.accuracy(model, self.test)

    def by_surgeon(self, sparsity: float, rounds: int = 1) -> float:
        """Test accuracy at the λ of the best accuracy on the validation split."""
        return max((self._pruned(sparsity, damp, rounds) for damp in DAMPS), key=lambda found: found[0])[1]

    def _pruned(self, sparsity: float, damp: float, rounds: int) -> tuple[float, float]:
        model = copy.deepcopy(self.model)
        for i in range(1, rounds + 1):
            obs_prune(model, 1 - (1 - sparsity) ** (i / rounds), self.grads(model, i), damp=damp)
        return self.accuracy(model, self.chosen), self.accuracy(model, self.test)


@claim("pruned in one shot to 95 % a digits network is at least 5 points more accurate than by magnitude")
def pruning(scale: Scale, seed: int) -> Evidence:
    nets = networks(seed)
    figures, notes = [], []
    for sparsity in (0.95, 0.9):
        ours, theirs = [n.by_surgeon(sparsity) for n in nets], [n.by_magnitude(sparsity) for n in nets]
        ahead = [a - b for a, b in zip(ours, theirs, strict=True)]
        name = f"points ahead of magnitude at {sparsity:.0%}"
        figures += [at_least(name, ahead, 5.0) if sparsity == 0.95 else recorded(name, ahead),
                    recorded(f"accuracy at {sparsity:.0%}, M-FAC", ours), recorded(f"accuracy at {sparsity:.0%}, magnitude", theirs)]
    if scale is Scale.FULL:
        figures += [recorded(f"accuracy at 95%, M-FAC in {k} rounds", [n.by_surgeon(0.95, k) for n in nets]) for k in (4, 16)]
        notes = ["The full scale adds pruning in rounds with new gradients in each; it has no ResNet-20, and nothing is retrained."]
    return Evidence(figures, notes=["64-128-10 network, 256 gradients of single digits, both weight matrices together; λ of 1e-5 to "
                                    "1e-2 by the accuracy on 280 digits that were not trained on, accuracies on 360 others.", *notes])
