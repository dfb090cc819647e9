"""The guard of Newton's iteration stops a rise, and nothing else."""

import pytest
import torch

from fallline.core import Key
from fallline.core.linalg import inverse_pth_root


@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_no_well_conditioned_or_rank_deficient_matrix_is_given_up(p):
    generator = Key(0).generator()
    for n in (2, 3, 5, 8):
        X = torch.randn(100, n, max(1, n // 2), generator=generator)
        A = X @ X.mT * 1e-5 * torch.rand(100, 1, 1, generator=generator)
        torch.testing.assert_close(inverse_pth_root(A, p, "newton"), inverse_pth_root(A, p, "eigh"), rtol=1e-3, atol=1e-3)
