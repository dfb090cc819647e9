"""Layer inputs and output gradients, and their products, which are gradients of weights."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from fallline.core.taps import Taps, input_rows, output_rows

Seen = list[tuple[nn.Module, Tensor, Tensor]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tapped(model: nn.Module, x: Tensor, **options: bool) -> Seen:
    seen: Seen = []
    with Taps(model, (nn.Linear, nn.Conv2d, nn.LayerNorm), lambda *use: seen.append(use), **options):
        out = model(x)
        out.square().sum().backward() if out.requires_grad else None
    return seen


@pytest.mark.parametrize("layer", [
    lambda: nn.Linear(4, 3),
    lambda: nn.Conv2d(4, 6, 3, padding=1),
    lambda: nn.Conv2d(4, 6, (2, 3), stride=(2, 1), dilation=(1, 2), padding=(1, 0)),
    lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", bias=False),
    lambda: nn.Conv2d(4, 6, (5, 1), padding="same"),
])
def test_rows_make_the_gradient_of_the_weight(layer) -> None:
    module = layer().double()
    (_, x, s), = tapped(module, draw(2, 5, 4) if isinstance(module, nn.Linear) else draw(2, 4, 6, 7))
    product = output_rows(module, s).mT @ input_rows(module, x)
    torch.testing.assert_close(product, module.weight.grad.flatten(1))


def test_rows_of_groups() -> None:
    module = nn.Conv2d(4, 6, 3, groups=2).double()
    (_, x, s), = tapped(module, draw(3, 4, 5, 5))
    rows, outputs = (t.unflatten(0, (3, 2, -1)) for t in (input_rows(module, x), output_rows(module, s)))
    product = torch.einsum("bgpo,bgpi->goi", outputs, rows).flatten(0, 1)
    torch.testing.assert_close(product, module.weight.grad.flatten(1))


def test_activations_in_place_and_modules_used_twice() -> None:
    layer = nn.Linear(3, 3).double()
    model = nn.Sequential(layer, nn.ReLU(inplace=True), layer, nn.ReLU(inplace=True))
    x = draw(5, 3)
    later, first = tapped(model, x)
    hidden = layer(x).relu()
    torch.testing.assert_close(later[1], hidden)
    torch.testing.assert_close(first[1], x)
    torch.testing.assert_close(sum(s.mT @ x for _, x, s in (first, later)), layer.weight.grad)
    assert not any(t.requires_grad for _, *both in (first, later) for t in both)


def test_frozen_layers_evaluation_and_passes_without_gradients_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3)).double()
    model[0].requires_grad_(False)
    assert [use[0] for use in tapped(model, draw(2, 3))] == [model[2], model[1]]
    with torch.no_grad():
        assert tapped(model, draw(2, 3)) == []
    model.eval()
    assert tapped(model, draw(2, 3)) == []
    assert [use[0] for use in tapped(model, draw(2, 3), evaluating=True)] == [model[2], model[1]]
    model.requires_grad_(False)
    assert tapped(model.train(), draw(2, 3).requires_grad_()) == []


def test_arguments_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    x = draw(4, 3)
    torch.testing.assert_close(tapped(Named(), x)[0][1], x)


def test_nothing_is_told_after_removal_and_nothing_stays() -> None:
    model, seen = nn.Sequential(nn.Linear(3, 2)).double(), []
    taps = Taps(model, (nn.Linear,), lambda *use: seen.append(use))
    loss = model(draw(4, 3)).sum()
    taps.remove()
    taps.remove()
    loss.backward()
    model(draw(4, 3)).sum().backward()
    assert seen == [] and not model[0]._forward_hooks


def test_no_graph_is_kept_and_no_cycle_made() -> None:
    gc.collect()
    gc.disable()
    try:
        model = nn.Linear(3, 2).double()
        taps = Taps(model, (nn.Linear,), lambda *use: None)
        out = model(draw(4, 3))
        output, watcher = weakref.ref(out), weakref.ref(taps)
        out.sum().backward()
        del out
        taps.remove()
        del taps
        assert output() is None and watcher() is None
    finally:
        gc.enable()


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be"):
        Taps([nn.Linear(2, 2)], (nn.Linear,), print)
