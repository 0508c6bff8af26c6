"""Random sequences to reverse: a task for a Transformer, without a download."""

import numpy as np

from train_jax.data.split import SequenceSplit, check_split_name

_SIZES = {"train": 50_000, "test": 2_000}
_LENGTH = 16
_NUM_SYMBOLS = 10


def load_reverse(base: str) -> SequenceSplit:
    """Draw random sequences of 16 digits; the target is the source reversed."""
    import jax

    check_split_name(base, tuple(_SIZES), "reverse")
    key = jax.random.fold_in(
        jax.random.key(0, impl="threefry2x32"), list(_SIZES).index(base)
    )
    shape = (_SIZES[base], _LENGTH)
    source_BS = np.asarray(jax.random.randint(key, shape, 0, _NUM_SYMBOLS))
    return SequenceSplit(source_BS, source_BS[:, ::-1], _NUM_SYMBOLS)
