"""Open, named counters of what a run has asked for: values, gradients, Hessian-vector products, samples, bytes, …"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping


class Counts(Mapping[str, int]):
    """A mapping from a name to how often it was asked; names open themselves at their first use.

    Parameters
    ----------
    parent : Counts, optional
        Counts that everything counted here is counted in as well: an inner solve shares its parent's bill.
    """

    def __init__(self, initial: Mapping[str, int] | None = None, parent: Counts | None = None) -> None:
        self._numbers: dict[str, int] = dict(initial or {})
        self.parent = parent
        self.limit: Callable[[], str | None] | None = None

    def add(self, name: str, amount: int = 1) -> None:
        """Count ``amount`` more of ``name``, here and in every parent."""
        self._numbers[name] = self._numbers.get(name, 0) + amount
        if self.parent is not None:
            self.parent.add(name, amount)

    def reached(self) -> str | None:
        """Return which limit is used up, of the run that counts here or of one it is nested in; None if none is."""
        own = self.limit() if self.limit is not None else None
        return own or (self.parent.reached() if self.parent is not None else None)

    def restore(self, numbers: Mapping[str, int]) -> None:
        """Go on from recorded numbers; the parent is told the difference."""
        for name in {*numbers, *self._numbers}:
            self.add(name, numbers.get(name, 0) - self[name])

    def __getitem__(self, name: str) -> int:
        return self._numbers.get(name, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __repr__(self) -> str:
        return f"Counts({', '.join(f'{name}={number:,}' for name, number in self._numbers.items())})"
