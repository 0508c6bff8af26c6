"""The golden files hold what PyTorch computes now.

With the parity tests, which compare JAX with the files, JAX agrees with PyTorch.
"""

import numpy as np
import pytest

from tests import parity


@pytest.mark.parity
@pytest.mark.parametrize("name", parity.GOLDEN_CASES)
def test_pytorch_computes_what_is_recorded(name):
    recorded, computed = parity.read("golden", name), parity.read("live", name)
    assert computed.keys() == recorded.keys()
    for key, expected in recorded.items():
        actual = computed[key]
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), key
        if np.issubdtype(expected.dtype, np.floating):
            # Each kind of processor adds up in another order: errors are as large as
            # those of the largest value.
            atol = 1e-5 * max(1, np.abs(expected).max(initial=0))
            np.testing.assert_allclose(actual, expected, 1e-5, atol, err_msg=key)
        else:
            np.testing.assert_array_equal(actual, expected, err_msg=key)
