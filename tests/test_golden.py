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
            parity.assert_close({key: actual}, {key: expected}, atol=1e-5)
        else:
            np.testing.assert_array_equal(actual, expected, err_msg=key)
