"""One thread a worker: the suite runs in two processes, and results must not depend on how sums are split."""

import signal

import pytest
import torch

torch.set_num_threads(1)
# A job in the background of a shell inherits that interrupts are ignored; Python then leaves it so, and tests of interrupts fail.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(before)
