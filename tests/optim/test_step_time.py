import pytest
import torch

from fallline.optim import Device, measure_device, step_time
from fallline.optim.engine.placement import dealt

FAST = Device(memory=1e12, multiply=1e14, root=0.1, network=1e11, latency=0.0)
GPT = [(4096, 1024), (1024, 4096), (3072, 1024), (1024, 1024), (1024,)] * 24


def test_one_rank_does_everything_and_sends_nothing():
    found = step_time([(64, 32)], 1, FAST, max_dim=64, root_every=10)
    assert found.gather == 0 and found.adamw == pytest.approx(4 * 7 * 2048 / 1e12)
    assert found.products == pytest.approx(2048 * 4 * (64 + 32) / 1e14)
    assert found.roots == pytest.approx((1 + 1 / 8) * 0.1 / 10)
    assert found.total == found.elementwise + found.products + found.roots


def test_work_is_shared_until_there_are_no_more_blocks():
    one, eight, many = (step_time(GPT, ranks, FAST) for ranks in (1, 8, 4096))
    assert eight.roots == pytest.approx(one.roots / 8, rel=0.1) and eight.products == pytest.approx(one.products / 8, rel=0.1)
    assert many.roots == pytest.approx(2 * 0.1 / 50)  # one block
    numbers = sum(torch.Size(shape).numel() for shape in GPT)
    assert eight.gather == pytest.approx(7 / 8 * numbers * 4 / 1e11, rel=0.1)
    assert "8 ranks" in repr(eight)


def test_dealing_is_greedy_and_goes_on_from_what_there_is():
    loads = [0, 5, 0]
    assert dealt([[3, 9], [3]], loads) == [[2, 0], [2]] and loads == [9, 5, 6]


def test_a_device_can_be_measured():
    found = measure_device(max_dim=32, repeats=2)
    assert all(x > 0 for x in (found.memory, found.multiply, found.root))
    assert step_time(GPT, 2, found, max_dim=32).total > 0


@pytest.mark.parametrize("bad", [{"memory": 0.0}, {"root": -1.0}])
def test_impossible_devices_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Device(**{"memory": 1.0, "multiply": 1.0, "root": 1.0, "network": 1.0, **bad})
    with pytest.raises(ValueError, match="ranks"):
        step_time(GPT, 0, FAST)
