"""Work items: how one or many parameters appear to a kernel as one plain tensor.

- :class:`FlatUnit`: a big tensor as a 1-D view of its own memory;
- :class:`.packed.PackedUnit`: many small tensors copied into one flat buffer and back;
- :class:`.stacked.StackedUnit`: tensors of one shape as a batch ``(B, *view)``, for the matrix scope;
- :class:`.joint.JointUnit`: all parameters of a group as one vector, for the joint scope.

State lives in the unit's own layout for good; ``optimizer.state[p]`` shows views of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .layout import flat, flat_as, is_dense, is_sharded, local, local_gradient, shard, sharded_as
from .reduction import How, whole
from .state import State, working_dtype
from .storage import Codec

Entries = tuple[tuple[str, State, Codec], ...]


class Unit:
    """Parameters treated by one kernel call.

    Attributes
    ----------
    params : list of Tensor
    indices : list of int
        Their positions in the optimizer.
    pieces : tuple of Tensor
        The encoded state, in the order of the entries.
    lengths : list of int
        Elements of every parameter inside ``p``, for reductions.
    """

    def __init__(self, params: list[Tensor], entries: Entries, indices: list[int]) -> None:
        self.params, self.indices = params, indices
        self.entries = entries
        self.working = working_dtype(params[0].dtype)
        self.locals = [local(p) for p in params]
        self.plain = not (is_sharded(params[0]) or params[0].is_complex())
        self.block = max((codec.block for _, _, codec in entries), default=1)
        self.lengths = [t.numel() for t in self.locals]
        self.pieces: tuple[Tensor, ...] = ()

    def describe(self, c: Any) -> None:
        """Add what a rule may ask of this unit to the coefficients."""

    def load(self) -> Tensor:
        """The parameters as one plain tensor, which the kernel overwrites."""
        raise NotImplementedError

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Gradients as one plain tensor like that of :meth:`load`, which is good until the next call."""
        raise NotImplementedError

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of any precision that are laid out like the parameters, as one that is good for longer."""
        return self.pack(tensors)

    def store(self, p: Tensor) -> None:
        """Write what the kernel made of ``load()`` to the parameters."""
        raise NotImplementedError

    def tiled(self, t: Tensor) -> Tensor:
        """A flat tensor as rows of one quantisation block, where there are any."""
        return t.view(-1, self.block) if self.block > 1 else t

    def segments(self, x: Tensor, how: How = "sum") -> Tensor:
        """Sums (or maxima) of ``x`` over every parameter, ``(len(params),)``."""
        raise NotImplementedError

    def spread(self, values: Tensor) -> Tensor:
        """One number a parameter, ready to multiply the kernel's tensors."""
        raise NotImplementedError

    def where_present(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """The coefficients of a step, with those that must be 0 where a parameter has no gradient."""
        return numbers

    def real(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Gradients as local real tensors."""
        if self.plain:
            return list(tensors)
        return [local_gradient(t, p) for t, p in zip(tensors, self.params, strict=True)]

    def adopt(self, states: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Move the states into this unit's layout (starting what is missing) and return the views to show."""
        shown: list[dict[str, Tensor]] = [{} for _ in self.params]
        pieces: list[Tensor] = []
        for name, declared, codec in self.entries:
            if declared.is_number and self.holds_numbers:
                pieces.append(self.adopt_numbers(name, declared, codec, states, shown))
                continue
            buffers = self.allocate(declared, codec)
            for i, state in enumerate(states):
                views = self.views(i, buffers, codec)
                self.fill(i, name, declared, codec, views, state)
                shown[i].update(self.shown(i, name, codec, buffers))
            pieces += [self.tile_piece(b, j) for j, b in enumerate(buffers)]
        self.pieces = tuple(pieces)
        return shown

    holds_numbers: ClassVar[bool] = True

    def adopt_numbers(self, name: str, declared: State, codec: Codec, states: Sequence[Mapping[str, Any]],
                      shown: list[dict[str, Tensor]]) -> Tensor:
        """One number a parameter, as the kernel takes it; rules read such entries and never write them."""
        values = torch.empty(len(self.params), dtype=codec.dtype, device=self.locals[0].device)
        for i, state in enumerate(states):
            values[i] = state[name] if name in state else float(declared.start(self.locals[i], codec.dtype))
            shown[i][name] = values[i]
        found = self.spread(values)
        return found if found.ndim else found.reshape(1)

    def tile_piece(self, buffer: Tensor, index: int) -> Tensor:
        """The buffer as the kernel takes it; scales (index 1) stay one number a block."""
        return self.tiled(buffer) if index == 0 else buffer

    def allocate(self, declared: State, codec: Codec) -> tuple[Tensor, ...]:
        """Buffers for one entry of all parameters."""
        raise NotImplementedError

    def views(self, i: int, buffers: tuple[Tensor, ...], codec: Codec) -> tuple[Tensor, ...]:
        """The part of the buffers that belongs to parameter ``i``, in the unit's layout."""
        raise NotImplementedError

    def shown(self, i: int, name: str, codec: Codec, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The part of the buffers that belongs to parameter ``i``, shaped for ``optimizer.state``."""
        raise NotImplementedError

    def plain_state(self, i: int, value: Tensor, declared: State) -> Tensor:
        """A visible entry in this unit's layout."""
        raise NotImplementedError

    def fill(
        self,
        i: int,
        name: str,
        declared: State,
        codec: Codec,
        views: tuple[Tensor, ...],
        state: Mapping[str, Any],
    ) -> None:
        """Fill parameter ``i``'s part of the buffers from its state, or with the initial value."""
        self._check_loaded(i, name, codec, views, state)
        if all(name + piece in state for piece in codec.pieces) and state[name].dtype == codec.dtype:
            views[0].copy_(self.plain_state(i, state[name], declared))
            for piece, view in zip(codec.pieces[1:], views[1:], strict=True):
                view.copy_(state[name + piece])
            return
        if name in state and state[name].is_floating_point() and len(codec.pieces) == 1:
            views[0].copy_(self.plain_state(i, state[name], declared))
            return
        if name in state and not state[name].is_floating_point():
            raise ValueError(
                f"the loaded state {name!r} is quantised, but this optimizer keeps it in {codec.dtype}; "
                "build the optimizer with the storage that saved it"
            )
        if name in state:
            start = self.plain_state(i, state[name], declared)
        elif declared.initial == 0.0:
            return
        else:
            start = self.plain_state(i, self.started(i, declared), declared)
        self.encode_into(views, start.to(self.working), codec)

    def _check_loaded(
        self, i: int, name: str, codec: Codec, views: tuple[Tensor, ...], state: Mapping[str, Any]
    ) -> None:
        for piece, view in zip(codec.pieces, views, strict=True):
            value = state.get(name + piece)
            if value is not None and local(value).numel() != view.numel():
                raise ValueError(
                    f"the loaded state {name + piece!r} has {local(value).numel()} numbers where the parameter with shape "
                    f"{tuple(self.params[i].shape)} needs {view.numel()}; load it into the model and optimizer that saved it"
                )

    def started(self, i: int, declared: State) -> Tensor:
        """The initial value for parameter ``i``; of a sharded one, this process's part of it."""
        p = self.params[i]
        if callable(declared.initial) and is_sharded(p):
            everything = torch.empty(p.shape, dtype=self.working, device=self.locals[i].device)
            return shard(declared.start(everything, self.working, self.indices[i]), p)
        return declared.start(self.seen(i), self.working, self.indices[i])

    def seen(self, i: int) -> Tensor:
        """Parameter ``i`` as the direction's ``init`` sees it."""
        return self.locals[i]

    def encode_into(self, views: tuple[Tensor, ...], x: Tensor, codec: Codec) -> None:
        """Write ``x`` in the codec's encoding."""
        if codec.block == 1:
            views[0].copy_(codec.encode(x)[0])
            return
        padded = x.new_zeros(-(-x.numel() // codec.block) * codec.block)
        padded[: x.numel()] = x
        codes, scale = codec.encode(padded.view(-1, codec.block))
        views[0].copy_(codes.view(-1)[: x.numel()])
        views[1].copy_(scale)


class FlatUnit(Unit):
    """One tensor; its length is a multiple of the storage's block."""

    def __init__(self, params: list[Tensor], entries: Entries, indices: list[int]) -> None:
        super().__init__(params, entries, indices)
        self.dense, self.contiguous = is_dense(self.locals[0]), self.locals[0].is_contiguous()
        self.like = self.locals[0] if self.dense else torch.empty(self.locals[0].shape, device="meta")
        if self.dense:
            self.p = self.tiled(flat(self.locals[0]))

    def load(self) -> Tensor:
        return self.p if self.dense else self.tiled(self.locals[0].contiguous().view(-1))

    def store(self, p: Tensor) -> None:
        if not self.dense:
            self.locals[0].copy_(p.view(self.locals[0].shape))

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        (t,) = self.real(tensors)
        return self.tiled(t.view(-1) if self.contiguous and t.is_contiguous() else flat_as(t, self.like))

    def segments(self, x: Tensor, how: How = "sum") -> Tensor:
        return whole(x, how).reshape(1)

    def spread(self, values: Tensor) -> Tensor:
        return values[0]

    def allocate(self, declared: State, codec: Codec) -> tuple[Tensor, ...]:
        return codec.allocate(self.lengths[0], self.locals[0].device)

    def views(self, i: int, buffers: tuple[Tensor, ...], codec: Codec) -> tuple[Tensor, ...]:
        return buffers

    def plain_state(self, i: int, value: Tensor, declared: State) -> Tensor:
        return flat_as(local(value), self.like)

    def shown(self, i: int, name: str, codec: Codec, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        view = buffers[0].as_strided(self.like.shape, self.like.stride())
        rest = {name + piece: b for piece, b in zip(codec.pieces[1:], buffers[1:], strict=True)}
        return {name: sharded_as(view, self.params[0]), **rest}
