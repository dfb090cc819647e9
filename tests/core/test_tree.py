"""Trees are combined by names and positions, whatever the order in which dicts were filled."""

import random

import pytest
import torch

from fallline.core import tree


def nested(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=dtype, generator=generator)
    return {"a": draw(2), "b": [draw(()), {"c": draw(2, 3), "d": (draw(4),)}], "e": draw(2)}


def shuffled(a, seed):
    if isinstance(a, dict):
        names = random.Random(seed).sample(list(a), len(a))
        return {name: shuffled(a[name], seed + 1) for name in names}
    return type(a)(shuffled(child, seed + 1) for child in a) if isinstance(a, list | tuple) else a


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("seed", range(4))
def test_products_do_not_depend_on_the_order_of_dicts(seed, dtype):
    a, b = nested(seed, dtype), nested(seed + 100, dtype)
    expected = (tree.flatten(a).conj() * tree.flatten(b)).sum()
    assert list(shuffled(b, 3)) != list(b)
    torch.testing.assert_close(tree.dot(a, shuffled(b, 3)), expected)
    torch.testing.assert_close(tree.gram([a, shuffled(b, 3)]), tree.gram([a, b]))
    torch.testing.assert_close(tree.gram([a, b])[0, 1], expected)
    torch.testing.assert_close(tree.dot(a, shuffled(a, 3)).real.sqrt(), tree.norm(a))


def test_alignment_follows_names_and_says_what_differs():
    a = nested(0)
    back = tree.aligned(shuffled(a, 3), a, "g")
    assert list(back) == list(a) and torch.equal(tree.flatten(back), tree.flatten(a))
    for wrong, message in ((torch.ones(2), r"g must be a dict"), ({**a, "f": torch.ones(1)}, r"\['a', 'b', 'e'\]"),
                           ({**a, "e": torch.ones(3)}, r"g\['e'\] must be a tensor of shape \(2,\), got shape \(3,\)"),
                           ({**a, "e": 1.0}, r"g\['e'\].*a float")):
        with pytest.raises(ValueError, match=message):
            tree.aligned(wrong, a, "g")
    with pytest.raises(ValueError, match="same leaves"):
        tree.dot({"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)})
