"""Transductive clustering: unlabelled queries cluster around one labelled point a class, which gives nearly all of the gain."""

from __future__ import annotations

import statistics
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor

import fallline as fl
from fallline.claims import Evidence, Paper, Scale, at_least, at_most, claim, recorded
from fallline.graphs import BoundClustering

PAPER = Paper(
    slug="transductive-clustering",
    title="Transductive Few-Shot Learning: Clustering is All You Need?",
    arxiv="2106.09516",
    year=2021,
    room="graphs",
    methods=("graphs.BoundClustering", "graphs.BoundUpdates"),
    headline="without meta-learning it beats the best few-shot methods clearly on miniImageNet, tieredImageNet, CUB and iNat; even "
    "k-means from the supports is competitive",
)
WAYS, QUERIES, SCALE = 5, 15, 10.0
LAMBDAS = (0.1, 0.3, 0.5, 0.7, 0.8, 1.0, 1.2, 1.5)
"""The paper's."""


def features() -> tuple[Tensor, Tensor]:
    """The digits on 20 principal components of 0 to 4, centred by them and normalised; and their classes."""
    digits = load_digits()
    reduced = torch.as_tensor(PCA(20, svd_solver="full").fit(digits.data[digits.target < WAYS]).transform(digits.data))
    return reduced / torch.linalg.vector_norm(reduced, dim=1, keepdim=True), torch.as_tensor(digits.target)


def task(X: Tensor, y: Tensor, first: int, key: fl.Key, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Five classes from the first on: their supports, one each, and then queries; and the labels from 0."""
    generator = key.generator()
    of_class = [(y == first + way).nonzero().flatten() for way in range(WAYS)]
    drawn = [places[torch.randperm(len(places), generator=generator)[:1 + size]] for places, size in zip(of_class, sizes, strict=True)]
    rows = torch.cat([torch.stack([each[0] for each in drawn]), *(each[1:] for each in drawn)])
    return X[rows], y[rows] - first


def accuracy(points: Tensor, labels: Tensor, lam: float) -> float:
    """In percent, of the queries."""
    learner = BoundClustering(WAYS, lam=lam, scale=SCALE).fit(points, range(WAYS), labels[:WAYS])
    return 100 * float((learner.labels_ == labels)[WAYS:].double().mean())


def nearest(points: Tensor, labels: Tensor) -> float:
    """Of the nearest support."""
    found = labels[:WAYS][torch.cdist(points[WAYS:], points[:WAYS]).argmin(1)]
    return 100 * float((found == labels[WAYS:]).double().mean())


def tuned(X: Tensor, y: Tensor, tasks: int, seed: int) -> float:
    """The λ that is best on tasks of the base classes."""
    base = [task(X, y, 0, fl.Key(seed).fold("base", t), (QUERIES,) * WAYS) for t in range(tasks)]
    return max(LAMBDAS, key=lambda lam: sum(accuracy(*each, lam) for each in base))


@claim("5-way 1-shot on digits, k-means from the supports is 4 points above the nearest support, and the regulariser, tuned on other "
       "classes, costs at most half a point")
def one_shot(scale: Scale, seed: int) -> Evidence:
    tasks, base_tasks = (100, 40) if scale is Scale.QUICK else (1_000, 200)
    X, y = features()
    lam = tuned(X, y, base_tasks, seed)
    novel = [task(X, y, WAYS, fl.Key(seed).fold("novel", t), (QUERIES,) * WAYS) for t in range(tasks)]
    plain, regular, alone = ([score(*each) for each in novel] for score in (
        lambda points, labels: accuracy(points, labels, 0.0), lambda points, labels: accuracy(points, labels, lam), nearest))
    shares = np.random.default_rng(seed).dirichlet([2.0] * WAYS, tasks // 4)
    skewed = [task(X, y, WAYS, fl.Key(seed).fold("skewed", t), tuple(round(WAYS * QUERIES * part) for part in each))
              for t, each in enumerate(shares.tolist())]
    return Evidence([at_least("accuracy, k-means − nearest support", statistics.mean(plain) - statistics.mean(alone), 4.0),
                     at_least("accuracy, regularised − k-means", statistics.mean(regular) - statistics.mean(plain), -0.5),
                     recorded("accuracy of the nearest support, mean", statistics.mean(alone)),
                     recorded("accuracy of k-means, mean", statistics.mean(plain)),
                     recorded("accuracy, regularised, mean", statistics.mean(regular)),
                     recorded("λ, tuned on 0 to 4", lam),
                     recorded("unbalanced queries, nearest support", statistics.mean(nearest(*each) for each in skewed)),
                     recorded("unbalanced queries, k-means", statistics.mean(accuracy(*each, 0.0) for each in skewed)),
                     recorded("unbalanced queries, regularised", statistics.mean(accuracy(*each, lam) for each in skewed))],
                    notes=[f"{tasks} tasks of classes 5 to 9 with 15 queries each; 20 principal components of classes 0 to 4, "
                           f"normalised, distances × 10; λ by {base_tasks} tasks of classes 0 to 4. Unbalanced: the queries in shares "
                           "of a Dirichlet distribution of 2."])


@claim("with the graph symmetrised and positive semidefinite the energy never rises")
def descent(scale: Scale, seed: int) -> Evidence:
    tasks = 10 if scale is Scale.QUICK else 100
    X, y = features()
    rises: dict[bool, list[float]] = {True: [], False: []}
    for t in range(tasks):
        points, labels = task(X, y, WAYS, fl.Key(seed).fold("novel", t), (QUERIES,) * WAYS)
        for symmetric, found in rises.items():
            for lam in (0.5, 1.5):
                learner = BoundClustering(WAYS, lam=lam, scale=SCALE, symmetric=symmetric)
                energies = learner.fit(points, range(WAYS), labels[:WAYS]).energy_
                found.append(max(b - a for a, b in pairwise(energies)) / abs(energies[0]))
    return Evidence([at_most("largest relative rise, symmetric and semidefinite", max(rises[True]), 1e-12),
                     recorded("largest relative rise, the paper's graph", max(rises[False]))],
                    notes=[f"{tasks} tasks, λ = 0.5 and 1.5. The energy has λ/2 before Σ w s s, of which the sweeps minimise bounds."])
