"""How far an estimated directed graph H is from the true one G.

    SHD   edges to add, leave out or turn around to make G of H
    SID   pairs (i, j) for which adjusting for H's parents of i gives a wrong effect of i on j in G
    TPR   share of G's edges found, in their direction;   FDR   share of H's edges that are none of G's, or turned around

The effect of i on j is right, where j is a parent of i in H (that says: no effect), if j is no descendant of i in G; else if the
parents Z of i in H are a valid adjustment set in G: no node of Z descends from a node other than i on a directed path from i to j,
and Z blocks every other path from i to j.

Graphs are matrices (d, d) whose entry (i, j) is not 0 for an edge i → j, without cycles.

Tsamardinos, Brown, Aliferis, Mach. Learn. 65 (2006) 31 (SHD); Peters and Bühlmann, Neural Comput. 27 (2015) 771 (SID); Shpitser,
VanderWeele, Robins, UAI 2010 (the adjustment criterion).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _edges(estimated: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    if estimated.ndim != 2 or estimated.shape != true.shape or len(true) != true.shape[-1]:
        raise ValueError("estimated and true must be square matrices of one size, "
                         f"got {tuple(estimated.shape)} and {tuple(true.shape)}")
    return (estimated != 0).cpu(), (true != 0).cpu()


def structural_hamming_distance(estimated: Tensor, true: Tensor) -> int:
    """Return the number of edges to add, leave out or turn around; an edge turned around counts once."""
    H, G = _edges(estimated, true)
    differ = (H != G) | (H != G).T
    return int(differ.triu(1).sum())


def true_positive_rate(estimated: Tensor, true: Tensor) -> float:
    """Return the share of true edges that were found, in their direction; 1 where there is none to find."""
    H, G = _edges(estimated, true)
    return float((H & G).sum() / G.sum()) if bool(G.any()) else 1.0


def false_discovery_rate(estimated: Tensor, true: Tensor) -> float:
    """Return the share of estimated edges that are not true ones; 0 where there is none."""
    H, G = _edges(estimated, true)
    return float((H & ~G).sum() / H.sum()) if bool(H.any()) else 0.0


def structural_intervention_distance(estimated: Tensor, true: Tensor) -> int:
    """Return the number of ordered pairs whose effect is wrong, between 0 and d (d − 1); time O(d⁴ log d), memory O(d³)."""
    H, G = _edges(estimated, true)
    d = len(G)
    reaches = _closure(G | torch.eye(d, dtype=torch.bool))  # [i, j]: j is i or descends from it
    parents = H.T  # row i: the adjustment set Z of i
    open_colliders = (parents.float() @ reaches.T.float()) > 0  # [i, v]: v is in Z or an ancestor of it
    connected = _closure(_moves(G, parents, open_colliders))
    # Between i and j, where w descends from i and j from w, are the nodes on directed paths; what descends from them is forbidden.
    on_path = (reaches & ~torch.eye(d, dtype=torch.bool))[:, :, None] & reaches[None]
    forbidden = (on_path.transpose(1, 2).float() @ reaches.float()) > 0  # [i, j, v]
    leaks = (forbidden & parents[:, None]).any(-1)
    up, down = connected[:, :d], connected[:, d:]
    arrives_up = up[:, :, :d] | up[:, :, d:]  # [i, start, j]
    arrives_down = down[:, :, :d] | down[:, :, d:]
    starts_up = G.T[:, :, None]  # from i to a parent
    starts_down = G[:, :, None] & ~reaches[None]  # from i to a child that is on no directed path to j
    unblocked = ((starts_up & arrives_up) | (starts_down & arrives_down)).any(1)
    said_none = parents
    wrong = torch.where(said_none, reaches, leaks | unblocked)
    return int((wrong & ~torch.eye(d, dtype=torch.bool)).sum())


def _moves(G: Tensor, Z: Tensor, open_colliders: Tensor) -> Tensor:
    """Single moves of Bayes' ball given the sets Z (d, d) of every start i, ``(d, 2d, 2d)``, itself included.

    A state is a node and how it was reached: from a child (the first d) or from a parent. Paths never come back to their start.
    """
    d = len(G)
    passes = ~Z[:, :, None]
    to_parents, to_children = G.T[None], G[None]
    from_child = torch.cat([passes & to_parents, passes & to_children], dim=2)
    from_parent = torch.cat([open_colliders[:, :, None] & to_parents, passes & to_children], dim=2)
    moves = torch.cat([from_child, from_parent], dim=1) | torch.eye(2 * d, dtype=torch.bool)
    returns = torch.eye(d, dtype=torch.bool).repeat(1, 2)
    return moves & ~returns[:, None, :] & ~returns[:, :, None]


def _closure(relation: Tensor) -> Tensor:
    """The transitive closure of reflexive relations ``(…, n, n)``, by squaring."""
    for _ in range(max(1, relation.shape[-1] - 1).bit_length()):
        relation = (relation.float() @ relation.float()) > 0
    return relation
