"""Random keys: counters with random access.

A key is a seed and a path of names and numbers, ``Key(0).fold(17, "batch")``. Its generator depends on nothing else, so a
run replays exactly from any step, and two draws with different paths are independent however many there are between them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Key:
    """A named position in a stream of random numbers.

    Parameters
    ----------
    seed : int
        The run's seed.
    path : tuple of str and int
        Where in the run: usually a step number and what is drawn there.
    """

    seed: int = 0
    path: tuple[str | int, ...] = ()

    def fold(self, *parts: str | int) -> Key:
        """Return the key further down the path."""
        return Key(self.seed, self.path + parts)

    def integer(self) -> int:
        """Return a well-mixed integer in [0, 2⁶³)."""
        digest = hashlib.blake2b(repr((self.seed, *self.path)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a fresh generator seeded by this key."""
        return torch.Generator(device).manual_seed(self.integer())


def as_key(key: Key | int) -> Key:
    """Accept a key or a plain seed."""
    if isinstance(key, Key):
        return key
    if isinstance(key, bool) or not isinstance(key, int):
        raise TypeError(f"key must be a Key or an int seed, got {key!r}")
    return Key(key)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return Gaussian numbers shaped as ``x``, drawn where the generator lives: the same key gives the same on every device."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
