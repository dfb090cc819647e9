"""Shampoo's square: one round of power iteration is close to the best Kronecker product, and Shampoo's own roots are not."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fallline as fl
from fallline.claims import Evidence, Figure, Paper, Scale, at_least, at_most, claim, recorded
from fallline.claims._tuning import trained
from fallline.core.tree import Tree
from fallline.landscape import KroneckerReport, kronecker_report
from fallline.landscape.kronecker import Labels
from fallline.optim import Adam
from fallline.problems import digits_cnn

PAPER = Paper(
    slug="shampoo-perspective",
    title="A New Perspective on Shampoo's Preconditioner",
    arxiv="2406.17748",
    year=2024,
    room="landscape",
    methods=("landscape.kronecker_report",),
    headline="on MNIST-2, CIFAR-5M and ImageNet networks the cosine of Shampoo² with the curvature is nearly that of the best "
    "Kronecker product, throughout training; those of Shampoo and K-FAC are visibly lower",
)
CLASSES, FEATURES, HIDDEN, SAMPLES, STEPS = 10, 16, 12, 1_000, 300
MODES: tuple[Labels, ...] = ("sampled", "real")


def gaussians(seed: int) -> fl.Training:
    """1,000 points around ten centres, both standard normal, and a 16-12-10 network."""
    generator = fl.Key(seed).fold("gaussians").generator()
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    labels = torch.arange(SAMPLES) % CLASSES
    points = centres[labels] + torch.randn(SAMPLES, FEATURES, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fl.Key(seed).fold("weights").integer())
        model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    return fl.Training(model, cross_entropy, (points, labels), batch_size=64)


def after(steps: int, problem: fl.Training, seed: int) -> Tree:
    """The weights after so many steps of Adam."""
    return trained(problem, fl.Train(Adam, lr=1e-2), steps, seed)


@functools.cache
def reports(seed: int) -> dict[tuple[str, str], KroneckerReport]:
    """At the start and after 300 steps, with sampled and with real labels."""
    problem = gaussians(seed)
    points = {"at the start": problem.x0, "after 300 steps": after(STEPS, problem, seed)}
    return {(when, mode): kronecker_report(problem, x, labels=mode, key=seed) for when, x in points.items() for mode in MODES}


def differences(found: list[KroneckerReport], weight: str, higher: str, lower: str) -> list[float]:
    """Of two cosines, seed by seed."""
    return [report.cosines[weight][higher] - report.cosines[weight][lower] for report in found]


def in_words(found: list[KroneckerReport], where: str) -> list[Figure]:
    """All cosines, recorded."""
    return [recorded(f"cosine, {name}, {weight}, {where}", [report.cosines[weight][name] for report in found])
            for weight in found[0].cosines for name in found[0].cosines[weight]]


@claim("at the start and after 300 steps, for sampled and real labels, Shampoo² is at most 0.02 below the best, 0.03 above Shampoo")
def cosines(scale: Scale, seed: int) -> Evidence:
    every = [reports(s) for s in range(seed, seed + 3)]
    figures: list[Figure] = []
    for when, mode in every[0]:
        found, where = [report[when, mode] for report in every], f"{mode} labels, {when}"
        for weight in found[0].cosines:
            figures += [at_most(f"best − Shampoo², {weight}, {where}", differences(found, weight, "optimal", "shampoo2"), 0.02),
                        at_least(f"Shampoo² − Shampoo, {weight}, {where}", differences(found, weight, "shampoo2", "shampoo"), 0.03)]
        figures += in_words(found, where)
    return Evidence(figures + (convolutions(seed) if scale is Scale.FULL else []), notes=[
        "Ten classes around standard normal centres with unit noise; Adam at rate 0.01 in batches of 64. 0.weight is 12 × 16, 2.weight "
        "10 × 12. Full: also the convolutional network on the digits, with batches of 32 and real labels late in training, recorded."])


def convolutions(seed: int) -> list[Figure]:
    """The network of convolutions, at the start and after 1,000 steps, gradients of single samples and of 32."""
    problem, figures = digits_cnn(seed), []
    late = after(1_000, problem, seed)
    for when, x in (("at the start", problem.x0), ("after 1,000 steps", late)):
        for mode in MODES:
            for batch in (1, 32):
                report = kronecker_report(problem, x, labels=mode, batch=batch, key=seed)
                figures += in_words([report], f"digits, batches of {batch}, {mode} labels, {when}")
    return figures


def densely(G: Tensor) -> float:
    """The best cosine by the singular values of the rearranged curvature, m² × n²."""
    m, n = G.shape[1:]
    vectors = G.flatten(1)
    H = vectors.T @ vectors / len(G)
    rearranged = H.reshape(m, n, m, n).transpose(1, 2).reshape(m * m, n * n)
    return float(torch.linalg.matrix_norm(rearranged, 2) / H.norm())


@claim("the best cosine found without the matrix is that of the dense singular value decomposition to 1e-4")
def matrix_free(scale: Scale, seed: int) -> Evidence:
    apart = []
    for s in range(seed, seed + 3):
        problem = gaussians(s)
        gradients = problem.per_sample_gradients(problem.x0)
        for weight, row in reports(s)["at the start", "real"].cosines.items():
            apart.append(abs(row["optimal"] - densely(gradients[weight].double())))
    return Evidence([at_most("difference of the best cosines", apart, 1e-4)],
                    notes=["At the start, with real labels, three seeds and both weights. The full scale is the same."])
