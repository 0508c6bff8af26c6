"""Dtype in which statistics are computed, and logits returned."""

from typing import Any

import numpy as np


def float32_or_wider(dtype: Any) -> np.dtype:
    """Return float64 for float64, and float32 for every narrower dtype.

    Raises:
        ValueError: for None, which NumPy takes for float64.
    """
    if dtype is None:
        raise ValueError("dtype must be a floating-point dtype, got None")
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
