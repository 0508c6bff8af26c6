"""Dtype in which sums, statistics and softmax are computed, and logits returned."""

from typing import Any

import numpy as np


def float32_or_wider(dtype: Any) -> np.dtype:
    """Return float64 for float64, and float32 for every narrower dtype."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
