"""Linear maps known by what they do to a vector.

``A.matvec(v) = A v`` and ``A.adjoint(w) = Aᴴ w``. Sums, multiples and products follow the algebra of matrices:
``(A B)ᴴ = Bᴴ Aᴴ``, ``(A + B)ᴴ = Aᴴ + Bᴴ``, ``(c A)ᴴ = c̄ Aᴴ``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fallline.core import tree

__all__ = ["Counter", "LinearOperator"]


class Counter(Protocol):
    """Anything that can be told of one more product, such as ``fallline.core.counts.Counts``."""

    def add(self, name: str, amount: int = 1, /) -> None: ...


class LinearOperator:
    """A linear map from n-vectors to m-vectors.

    Parameters
    ----------
    shape : (m, n)
        Rows and columns.
    matvec : function
        Takes a 1-D tensor of n entries, returns one of m.
    adjoint : function, optional
        Takes a 1-D tensor of m entries, returns one of n. A self-adjoint operator passes its ``matvec`` here.
    dtype, device
        Of the vectors; torch's default dtype and the CPU unless given.
    counts : Counter, optional
        ``counts.add("matvecs", 1)`` is called for each product with the operator or its adjoint. Operators built
        by sums and products have none of their own: their parts count.

    Examples
    --------
    >>> A = LinearOperator.from_tensor(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    >>> (2 * A @ A).matvec(torch.ones(2))
    tensor([ 8., 18.])
    """

    def __init__(
        self,
        shape: tuple[int, int],
        matvec: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        counts: Counter | None = None,
    ) -> None:
        rows, columns = (int(length) for length in shape)
        if rows < 1 or columns < 1:
            raise ValueError(f"shape must be two positive integers, got {tuple(shape)}")
        self.shape = (rows, columns)
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.device = torch.device(device)
        self.counts = counts
        self._matvec = matvec
        self._adjoint = adjoint

    @classmethod
    def from_tensor(cls, A: Tensor, *, counts: Counter | None = None) -> LinearOperator:
        """Return the operator of a dense or sparse matrix of shape (m, n).

        A sparse one is kept by rows, and its transpose too once it is asked for: products with columns are twenty times slower.
        """
        if A.ndim != 2:
            raise ValueError(f"A must be a matrix of shape (m, n), got shape {tuple(A.shape)}")
        matrix = A if A.layout is torch.strided else by_rows(A)

        @functools.cache
        def conjugate_transpose() -> Tensor:
            transpose = matrix.t() if matrix.layout is torch.strided else by_rows(matrix.t())
            return transpose.conj() if A.is_complex() else transpose

        return cls(
            (A.shape[0], A.shape[1]),
            lambda v: matrix @ v,
            lambda w: conjugate_transpose() @ w,
            dtype=A.dtype,
            device=A.device,
            counts=counts,
        )

    @classmethod
    def from_function(
        cls,
        function: Callable[[Any], Any],
        like: tree.Tree,
        *,
        adjoint: Callable[[Any], Any] | None = None,
        dtype: torch.dtype | None = None,
        counts: Counter | None = None,
    ) -> LinearOperator:
        """Return the operator of a linear map on trees shaped as ``like``: a Hessian-vector product, for one.

        Parameters
        ----------
        function : tree -> tree
            The map; argument and value are shaped as ``like``.
        like : tree
            Gives shape, dtype and device; its values are not used. All leaves share one device, and one dtype unless ``dtype`` is
            given.
        adjoint : tree -> tree, optional
            Aᴴ; pass ``function`` again when the map is self-adjoint.
        dtype : torch.dtype, optional
            Of the operator's vectors, where it is not that of the leaves: float32 for weights in half precision.
        counts : Counter, optional
            Told of each product.
        """
        tensors = tree.leaves(like)
        kinds = {(leaf.dtype if dtype is None else dtype, leaf.device) for leaf in tensors}
        if len(kinds) != 1:
            raise ValueError(f"like must have leaves of one dtype and device, got {sorted(map(str, kinds))}")
        kind, device = kinds.pop()

        def flat(on_trees: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
            return lambda v: tree.flatten(on_trees(tree.unflatten(v, like))).to(kind)

        length = tree.size(like)
        return cls(
            (length, length),
            flat(function),
            None if adjoint is None else flat(adjoint),
            dtype=kind,
            device=device,
            counts=counts,
        )

    def matvec(self, v: tree.Tree) -> Any:
        """Return A v for a 1-D tensor of n entries; a square operator takes any tree of n entries and returns its like."""
        return self._apply(self._matvec, v, self.shape[1], self.shape[0])

    def adjoint(self, w: tree.Tree) -> Any:
        """Return Aᴴ w for a 1-D tensor of m entries; a square operator takes any tree and returns its like."""
        if self._adjoint is None:
            raise ValueError(f"{self!r} has no adjoint; pass adjoint= when making it (its matvec if it is self-adjoint)")
        return self._apply(self._adjoint, w, self.shape[0], self.shape[1])

    @property
    def H(self) -> LinearOperator:
        """Aᴴ as an operator; its products count with those of A."""
        return LinearOperator((self.shape[1], self.shape[0]), self.adjoint, self.matvec, dtype=self.dtype, device=self.device)

    def shifted(self, shift: float) -> LinearOperator:
        """Return A + shift · I for a square A; its products count with those of A."""
        if self.shape[0] != self.shape[1]:
            raise ValueError(f"{self!r} is not square: only a square operator can be shifted by a multiple of the identity")
        return self._derived(self.shape, lambda v: self.matvec(v) + shift * v, lambda w: self.adjoint(w) + shift * w)

    def to_dense(self) -> Tensor:
        """Return the matrix, shape (m, n), by n products with unit vectors."""
        identity = torch.eye(self.shape[1], dtype=self.dtype, device=self.device)
        return torch.stack([self.matvec(column) for column in identity], dim=1)

    def __matmul__(self, other: Any) -> Any:
        """``A @ B`` for an operator B, ``A @ v`` for a vector or tree."""
        if not isinstance(other, LinearOperator):
            return self.matvec(other)
        if self.shape[1] != other.shape[0]:
            raise ValueError(f"cannot compose shapes {self.shape} and {other.shape}: inner lengths differ")
        return self._derived(
            (self.shape[0], other.shape[1]),
            lambda v: self.matvec(other.matvec(v)),
            lambda w: other.adjoint(self.adjoint(w)),
        )

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        if self.shape != other.shape:
            raise ValueError(f"cannot add operators of shapes {self.shape} and {other.shape}")
        return self._derived(
            self.shape,
            lambda v: self.matvec(v) + other.matvec(v),
            lambda w: self.adjoint(w) + other.adjoint(w),
        )

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-other)

    def __neg__(self) -> LinearOperator:
        return -1 * self

    def __mul__(self, factor: complex | Tensor) -> LinearOperator:
        if isinstance(factor, LinearOperator):
            return NotImplemented
        conjugate = factor.conj() if isinstance(factor, Tensor) else factor.conjugate()
        return self._derived(self.shape, lambda v: factor * self.matvec(v), lambda w: conjugate * self.adjoint(w))

    __rmul__ = __mul__

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"LinearOperator({rows} x {columns}, {str(self.dtype).removeprefix('torch.')}, {self.device})"

    def _derived(
        self, shape: tuple[int, int], matvec: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]
    ) -> LinearOperator:
        return LinearOperator(shape, matvec, adjoint, dtype=self.dtype, device=self.device)

    def _apply(self, function: Callable[[Tensor], Tensor], v: tree.Tree, expected: int, returned: int) -> Any:
        flat = tree.flatten(v)
        if flat.numel() != expected:
            raise ValueError(f"{self!r} expects a vector of {expected} entries here, got {flat.numel()}")
        is_flat = isinstance(v, Tensor) and v.ndim == 1
        if not is_flat and expected != returned:
            raise ValueError(f"{self!r} is not square: it takes and returns 1-D tensors; flatten the argument")
        if self.counts is not None:
            self.counts.add("matvecs", 1)
        result = function(flat)
        if result.shape != (returned,):
            raise ValueError(f"the function behind {self!r} returned shape {tuple(result.shape)}, expected ({returned},)")
        return result if is_flat else tree.unflatten(result, v)


def by_rows(A: Tensor) -> Tensor:
    """Return a sparse matrix in compressed rows, without the warning that torch calls that layout new.

    With 32-bit indices where they suffice: products on the CPU would convert 64-bit ones each time, for half as long again.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows = A.to_sparse_csr()
        starts, columns = rows.crow_indices(), rows.col_indices()
        if max(*rows.shape, columns.numel()) < 2**31:
            starts, columns = starts.int(), columns.int()
        return torch.sparse_csr_tensor(starts, columns, rows.values(), rows.shape, check_invariants=False)


def square_size(operator: LinearOperator, purpose: str) -> int:
    """Return n of an (n, n) operator, or say that ``purpose`` needs one."""
    if not isinstance(operator, LinearOperator):
        raise TypeError(
            f"operator must be a LinearOperator, got {type(operator).__name__}; "
            "make one by LinearOperator.from_tensor or LinearOperator.from_function"
        )
    if operator.shape[0] != operator.shape[1]:
        raise ValueError(f"{purpose} needs a square operator, got shape {operator.shape}; A.H @ A is one")
    return operator.shape[0]


def start_vector(operator: LinearOperator, start: tree.Tree | None, generator: torch.Generator | None) -> Tensor:
    """Return a start vector of norm one: the given one, or a Gaussian draw."""
    length = operator.shape[1]
    if (start is None) == (generator is None):
        raise ValueError("give either start= (a nonzero vector) or generator= (a torch.Generator to draw one), not both")
    vector = random_vector(operator, generator) if start is None else tree.flatten(start).to(operator.dtype)
    if vector.numel() != length:
        raise ValueError(f"start must have {length} entries for {operator!r}, got {vector.numel()}")
    size = torch.linalg.vector_norm(vector)
    if not (torch.isfinite(size) and size > 0):
        raise ValueError(f"start must be a finite nonzero vector, got one of norm {float(size)}")
    return vector / size


def random_vector(operator: LinearOperator, generator: torch.Generator | None) -> Tensor:
    """Return a Gaussian n-vector, drawn on the generator's device."""
    device = generator.device if generator is not None else operator.device
    return torch.randn(operator.shape[1], generator=generator, dtype=operator.dtype, device=device).to(operator.device)


def random_signs(operator: LinearOperator, generator: torch.Generator) -> Tensor:
    """Return an n-vector of independent ±1 with equal probability, drawn on the generator's device."""
    bits = torch.randint(0, 2, (operator.shape[1],), generator=generator, device=generator.device)
    return (2 * bits - 1).to(device=operator.device, dtype=operator.dtype)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Return the real part of ⟨x, y⟩."""
    return torch.vdot(x, y).real
