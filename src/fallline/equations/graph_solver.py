"""Convergent graph solvers: a network predicts a contraction on a graph, and its fixed point is the representation.

    x ← φ(γ A x + b),   γ < 1,   A_ij = clip(a_ij, 0, 1) / (edges out of i) on edges (i, j),   φ 1-Lipschitz

Rows of A sum to at most 1, so that the map contracts by γ in the maximum norm whatever the network predicts: there is one fixed
point, and x ← … finds it from anywhere. The logits a of edges and the biases b of nodes come from message passing, one of each for
every head; a small network reads the fixed points of all heads. Gradients are those of the fixed point:

    y = Jᵀ y + ∂L/∂x,   J = γ diag(φ′) A,   pushed through one application of the map

J. Park, J. Choo, J. Park: Convergent graph solvers, ICLR 2022, arXiv 2106.02285.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.core.checks import check_count
from fallline.core.fixed_point import implicit_fixed_point

Activation = Callable[[Tensor], Tensor]
Graph = tuple[Tensor, Tensor, Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "identity": _identity, "relu": F.relu, "leaky_relu": F.leaky_relu, "elu": F.elu, "softplus": F.softplus, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "hardtanh": F.hardtanh,
}


def fixed_point_layer(A: Tensor, b: Tensor, gamma: float, activation: str | Activation = "identity", *, tol: float = 1e-6,
                      max_iterations: int = 1_000) -> Tensor:
    """Return the fixed point of x ↦ φ(γ A x + b), with implicit gradients in A and b.

    Parameters
    ----------
    A : Tensor (..., N, N)
        Dense, or sparse (N, N). γ times its largest sum of magnitudes over rows, or that over columns, must be less than 1.
    b : Tensor (..., N)
    gamma : float in (0, 1)
    activation : str or callable, default "identity"
        φ, entry by entry: "identity", "relu", "leaky_relu", "elu", "softplus", "tanh", "sigmoid", "hardtanh", or a function whose slope
        is nowhere above 1 in magnitude (which is looked at on [−20, 20]).
    tol, max_iterations : float, int
        Of both iterations: until the change is at most ``tol`` · max(1, ‖x‖). The contraction ends them; the paper stops at 50.

    Returns
    -------
    Tensor (..., N)

    Raises
    ------
    ValueError
        The map need not be a contraction.
    """
    slope_limited = _activation(activation)
    _check_gamma(gamma)
    A = A if A.layout is torch.strided else A.to_sparse_coo()
    if A.shape[-2:] != (b.shape[-1], b.shape[-1]) or (A.is_sparse and b.ndim > 1):
        raise ValueError(f"A must be of shape (..., N, N), or sparse (N, N), to fit b of shape (..., N), got {tuple(A.shape)} and "
                         f"{tuple(b.shape)}")
    norm = gamma * _smaller_norm(A)
    if not norm < 1:
        raise ValueError(f"gamma times the largest row and column sum of |A| must be less than 1, got {norm:.6g}; divide A by its norm")

    def step(x: Tensor) -> Tensor:
        product = A @ x if A.is_sparse else (A @ x.unsqueeze(-1)).squeeze(-1)
        return slope_limited(gamma * product + b)

    start = b.detach().new_zeros(torch.broadcast_shapes(A.shape[:-1], b.shape))
    return implicit_fixed_point(step, start, tol=tol, max_iterations=max_iterations)


def _smaller_norm(A: Tensor) -> float:
    sums = [torch.sum(A.detach().abs(), dim) for dim in (-1, -2)]
    return min(float((s.to_dense() if s.is_sparse else s).max()) for s in sums)


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must be in (0, 1), so that the map is a contraction, got {gamma!r}")


def _activation(activation: str | Activation) -> Activation:
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)} or a function, got {activation!r}")
        return ACTIVATIONS[activation]
    if not callable(activation):
        raise TypeError(f"activation must be a name or a function, got a {type(activation).__name__}")
    x = torch.linspace(-20, 20, 4_001, dtype=torch.float64)
    with torch.no_grad():
        slope = float((activation(x).diff() / x.diff()).abs().max())
    if not slope <= 1 + 1e-6:
        raise ValueError(f"activation must be 1-Lipschitz, so that the map is a contraction, and has a slope of {slope:.4g}; scale it, "
                         f"or take one of {', '.join(ACTIVATIONS)}")
    return activation


class CGS(nn.Module):
    """A graph network whose representation is the unique fixed point of a contraction that it predicts.

    Parameters
    ----------
    node_dim, edge_dim : int
        Features of nodes and edges.
    heads : int, default 64
        Fixed points, each of an A and a b of its own.
    gamma : float in (0, 1), default 0.5
        How much the map contracts.
    out_dim : int, default 1
    activation : str or callable, default "identity"
        φ; as for ``fixed_point_layer``.
    hidden_dim, hidden_layers, mlp_dim : int
        Of message passing: the width of nodes and edges between layers (64), the layers before the one that gives a and b (3), and the
        width inside of their networks (128).
    decoder_dims : sequence of int, default (64, 32)
        Hidden layers of the network that reads the heads.
    tol : float, default 1e-6
        Of the fixed point and of its gradient.

    Notes
    -----
    A layer of message passing is the authors': an edge network of both ends, a softmax attention over the edges into a node, their
    sum, a node network; two linear maps in each, with a leaky ReLU after both. The paper's encoder for pore networks has no hidden
    layer, 32 and 64 wide. An edge (i, j) lets i read the fixed point at j, and carries messages from i to j, as in the authors' code;
    give both directions for a graph without any. A node without edges out has the fixed point φ(b).

    Examples
    --------
    >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    >>> model = CGS(node_dim=2, edge_dim=1, heads=4)
    >>> model(edges, torch.ones(3, 2), torch.ones(4, 1)).shape
    torch.Size([3, 1])
    """

    def __init__(self, node_dim: int, edge_dim: int, heads: int = 64, gamma: float = 0.5, out_dim: int = 1,
                 activation: str | Activation = "identity", *, hidden_dim: int = 64, hidden_layers: int = 3, mlp_dim: int = 128,
                 decoder_dims: Sequence[int] = (64, 32), tol: float = 1e-6) -> None:
        super().__init__()
        for name, size in (("node_dim", node_dim), ("edge_dim", edge_dim), ("heads", heads), ("out_dim", out_dim),
                           ("hidden_dim", hidden_dim), ("mlp_dim", mlp_dim)):
            check_count(name, size, "it is a number of features")
        _check_gamma(gamma)
        self.heads, self.gamma, self.tol, self.activation = heads, gamma, tol, activation
        self._phi = _activation(activation)
        nodes, edges = ([first, *hidden_layers * [hidden_dim], heads] for first in (node_dim, edge_dim))
        self.encoder = nn.ModuleList(MessagePassing(*ends, mlp_dim) for ends in zip(nodes, nodes[1:], edges, edges[1:], strict=False))
        widths = [heads, *decoder_dims]
        hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.LeakyReLU())]
        self.decoder = nn.Sequential(*hidden, nn.Linear(widths[-1], out_dim))

    def transition(self, edge_index: Tensor, node_feat: Tensor, edge_feat: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the map x ↦ φ(γ A x + b) of a graph, on tensors (N, heads)."""
        self._check(edge_index, node_feat, edge_feat)
        b, logits = node_feat, edge_feat
        for layer in self.encoder:
            b, logits = layer(edge_index, b, logits)
        source, target = edge_index
        degree = torch.bincount(source, minlength=len(b)).to(b.dtype)
        weights = logits.clamp(0, 1) / degree[source].unsqueeze(-1)

        def step(x: Tensor) -> Tensor:
            return self._phi(self.gamma * torch.zeros_like(x).index_add(0, source, weights * x[target]) + b)

        return step

    def forward(self, edge_index: Tensor, node_feat: Tensor, edge_feat: Tensor, graph: Tensor | None = None) -> Tensor:
        """Return outputs of nodes, or of graphs.

        Parameters
        ----------
        edge_index : Tensor (2, E), int64
            Sources and targets of edges.
        node_feat : Tensor (N, node_dim)
        edge_feat : Tensor (E, edge_dim)
        graph : Tensor (N,), int64, optional
            Which graph a node belongs to, as ``batch_graphs`` says it: the fixed points of each are summed before they are read.

        Returns
        -------
        Tensor (N, out_dim), or (graphs, out_dim)
        """
        step = self.transition(edge_index, node_feat, edge_feat)
        x = implicit_fixed_point(step, node_feat.new_zeros(len(node_feat), self.heads), tol=self.tol)
        if graph is not None:
            if graph.shape != (len(x),) or graph.is_floating_point():
                raise ValueError(f"graph must hold a whole number for each of {len(x)} nodes, got shape {tuple(graph.shape)} of "
                                 f"{graph.dtype}")
            x = x.new_zeros(int(graph.max()) + 1, x.shape[1]).index_add(0, graph, x)
        return self.decoder(x)

    def _check(self, edge_index: Tensor, node_feat: Tensor, edge_feat: Tensor) -> None:
        first = self.encoder[0]
        if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.dtype != torch.long:
            raise ValueError(f"edge_index must be of shape (2, E) and int64, got shape {tuple(edge_index.shape)} of {edge_index.dtype}")
        for name, given, rows, features in (("node_feat", node_feat, len(node_feat), first.node_in),
                                            ("edge_feat", edge_feat, edge_index.shape[1], first.edge_in)):
            if given.shape != (rows, features):
                raise ValueError(f"{name} must be of shape ({rows}, {features}), got {tuple(given.shape)}")
        if not len(node_feat):
            raise ValueError("node_feat must have a row for at least one node, got none")
        if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= len(node_feat)):
            raise ValueError(f"edge_index must be from 0 to {len(node_feat) - 1} for {len(node_feat)} nodes, got "
                             f"{int(edge_index.min())} to {int(edge_index.max())}")

    def extra_repr(self) -> str:
        return f"heads={self.heads}, gamma={self.gamma}, activation={self.activation!r}"


class MessagePassing(nn.Module):
    """e′ = edge(e, h_i, h_j);  h′_j = node(Σ_i softmax_i(attention(e, h_i, h_j)) e′, h_j), over the edges (i, j) into j."""

    def __init__(self, node_in: int, node_out: int, edge_in: int, edge_out: int, mlp_dim: int) -> None:
        super().__init__()
        self.node_in, self.node_out, self.edge_in = node_in, node_out, edge_in
        ends = edge_in + 2 * node_in
        self.edge, self.attention = _network(ends, mlp_dim, edge_out), _network(ends, mlp_dim, 1)
        self.node = _network(edge_out + node_in, mlp_dim, node_out)

    def forward(self, edge_index: Tensor, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new features (N, node_out) of nodes and (E, edge_out) of edges."""
        source, target = edge_index
        ends = torch.cat([edges, nodes[source], nodes[target]], -1)
        messages, logits = self.edge(ends), self.attention(ends).squeeze(-1)
        highest = logits.detach().new_full((len(nodes),), -torch.inf).scatter_reduce(0, target, logits.detach(), "amax")
        shares = (logits - highest[target]).exp()
        total = shares.new_zeros(len(nodes)).index_add(0, target, shares)
        shares = shares / total[target]
        received = messages.new_zeros(len(nodes), messages.shape[1]).index_add(0, target, shares.unsqueeze(-1) * messages)
        return self.node(torch.cat([received, nodes], -1)), messages


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(), nn.Linear(hidden, outputs), nn.LeakyReLU())


def batch_graphs(graphs: Sequence[Graph]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return several graphs as one with a block for each: what ``CGS`` takes.

    Parameters
    ----------
    graphs : sequence of (edge_index (2, E), node_feat (N, …), edge_feat (E, …))

    Returns
    -------
    edge_index (2, ΣE), node_feat (ΣN, …), edge_feat (ΣE, …), graph (ΣN,)
        The last says which graph a node is of.
    """
    if not graphs:
        raise ValueError("graphs must hold at least one graph, got none")
    sizes = torch.tensor([len(nodes) for _, nodes, _ in graphs])
    offsets = (sizes.cumsum(0) - sizes).tolist()
    device = graphs[0][0].device
    return (torch.cat([edges + offset for (edges, _, _), offset in zip(graphs, offsets, strict=True)], 1),
            torch.cat([nodes for _, nodes, _ in graphs]), torch.cat([features for _, _, features in graphs]),
            torch.arange(len(graphs), device=device).repeat_interleave(sizes.to(device)))
