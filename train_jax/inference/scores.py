"""Scores of a classifier: top-k accuracy, accuracy of each class, calibration error."""

import numpy as np

_NUM_BINS = 15


def top_k_accuracy(probability_MY: np.ndarray, label_M: np.ndarray, k: int) -> float:
    """Compute the share of examples whose class is among the k most probable ones.

    >>> top_k_accuracy(np.array([[0.2, 0.5, 0.3]]), np.array([2]), k=2)
    1.0
    """
    true_M1 = np.take_along_axis(probability_MY, label_M[:, None], axis=1)
    num_higher_M = (probability_MY > true_M1).sum(axis=1)
    # Of equal ones the first counts as the most probable, as in argmax.
    is_before_MY = np.arange(probability_MY.shape[1]) < label_M[:, None]
    num_equal_M = ((probability_MY == true_M1) & is_before_MY).sum(axis=1)
    return float((num_higher_M + num_equal_M < k).mean())


def class_accuracies(
    predicted_M: np.ndarray, label_M: np.ndarray
) -> dict[int, tuple[int, float]]:
    """Compute each class's number of examples, and the share that is right.

    >>> class_accuracies(np.array([0, 1, 1]), np.array([0, 0, 1]))
    {0: (2, 0.5), 1: (1, 1.0)}
    """
    return {
        int(label): (int(count), float((predicted_M[label_M == label] == label).mean()))
        for label, count in zip(*np.unique(label_M, return_counts=True), strict=True)
    }


def calibration_error(probability_MY: np.ndarray, label_M: np.ndarray) -> float:
    """Compute the expected calibration error, over 15 bins of equal width.

    >>> calibration_error(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 0, 1]))
    0.0

    References: "On Calibration of Modern Neural Networks", arXiv:1706.04599, eq. 3.
    """
    confidence_M = probability_MY.max(axis=1).astype(np.float64)
    is_right_M = probability_MY.argmax(axis=1) == label_M
    bin_M = np.clip(np.ceil(confidence_M * _NUM_BINS).astype(int) - 1, 0, None)
    excess_M = is_right_M - confidence_M
    sums = np.bincount(bin_M, weights=excess_M, minlength=_NUM_BINS)
    return float(np.abs(sums).sum() / len(label_M))
