"""The dtype of sums, statistics, softmax and logits."""

from typing import Any

import numpy as np


def float32_or_wider(dtype: Any) -> np.dtype:
    """Return float64 for float64, and float32 for all that is narrower."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
