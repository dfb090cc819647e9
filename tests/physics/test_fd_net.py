import pytest
import torch

from fallline.physics import FDNet

D = torch.float64


def test_a_linear_step_is_the_stencil_on_a_ring():
    net = FDNet((3, 5), aux_steps=2, dtype=D)
    u = torch.randn(2, 8, dtype=D, generator=torch.Generator().manual_seed(0))
    by_hand = u
    for _ in range(2):
        change = sum(float(w) * by_hand.roll(-(k - s.shape[-1] // 2), -1) for s in net.stencils for k, w in enumerate(s.reshape(-1)))
        by_hand = by_hand + change
    torch.testing.assert_close(net(u), by_hand)
    torch.testing.assert_close(net.rollout(u, 3)[2], net(net(net(u))))


def test_products_of_pairs_make_it_nonlinear():
    net = FDNet((1, 3), order=2, dtype=D)
    assert net.products.shape == (3,)
    with torch.no_grad():
        net.stencils[0].fill_(1.0)
        net.stencils[1].copy_(torch.tensor([[[-0.5, 0.0, 0.5]]]))
        net.products.copy_(torch.tensor([0.0, -2.0, 0.0]))  # the pair of both stencils: −2 u · u_x
    u = torch.randn(1, 6, dtype=D, generator=torch.Generator().manual_seed(0))
    slope = (u.roll(-1, -1) - u.roll(1, -1)) / 2
    torch.testing.assert_close(net(u), u + u + slope - 2 * u * slope)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("padding", ["circular", "replicate", "reflect", "zeros"])
def test_shapes_are_kept_in_every_dimension(dimensions, padding):
    net = FDNet((3,), dimensions=dimensions, padding=padding)
    u = torch.randn(2, *(5,) * dimensions)
    assert net(u).shape == u.shape


def test_the_key_decides_the_weights_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    one, two, other = FDNet(key=1), FDNet(key=1), FDNet(key=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.stencils[0], two.stencils[0]) and not torch.equal(one.stencils[0], other.stencils[0])


@pytest.mark.parametrize(("arguments", "message"), [
    ({"filter_sizes": (4,)}, "filter_sizes"), ({"filter_sizes": ()}, "filter_sizes"), ({"order": 3}, "order"),
    ({"aux_steps": 0}, "aux_steps"), ({"dimensions": 4}, "dimensions"), ({"padding": "wrap"}, "padding"),
])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FDNet(**arguments)


def test_a_field_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match="grid of 1 dimensions"):
        FDNet()(torch.zeros(5))
