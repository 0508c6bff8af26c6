"""Sequence to sequence: batches for teacher forcing, evaluation, plots."""

import dataclasses
import functools
import pathlib
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.data import SequenceSplit
from train_jax.devices import compiler
from train_jax.learning.batch import Batch
from train_jax.learning.step import cross_entropy
from train_jax.output import attention_plots
from train_jax.tasks.task import EvalStep
from vit_jax.decoding import greedy_decode
from vit_jax.interpret import attention_weights

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Translation:
    """Sequence to sequence, trained by teacher forcing, see `Task`.

    Attributes:
        num_symbols: number of different tokens in the data; one more, with this
            number, starts every target.
        source_length: number of tokens S of a source.
        target_length: number of tokens T of a target.
    """

    num_symbols: int
    source_length: int
    target_length: int

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary V: the symbols and the start token."""
        return self.num_symbols + 1

    @property
    def model_fields(self) -> dict[str, Any]:
        """The size of the vocabulary."""
        return {"vocab_size": self.vocab_size}

    def inputs(self) -> tuple[Array, ...]:
        """Make one source and one target, int32 (1, S) and (1, T), all zeros."""
        lengths = (self.source_length, self.target_length)
        return tuple(jnp.zeros((1, length), jnp.int32) for length in lengths)

    def make_batch(
        self,
        key: Array,
        source_BS: Array,
        target_BT: Array,
        *,
        index_B: Array | None = None,
        epoch: Array | None = None,
    ) -> Batch:
        """Shift the targets right, so that each token is predicted from those before.

        Args:
            key: not used.
            source_BS: integers.
            target_BT: integers.
            index_B: not used.
            epoch: not used.

        Returns:
            (source_BS, shifted_BT), target_BTV: the latter class probabilities.
        """
        del key, index_B, epoch
        self._check_examples(source_BS, target_BT)
        target_BTV = jax.nn.one_hot(target_BT, self.vocab_size)
        shifted_BT = self._shift_right(target_BT)
        chex.assert_equal_shape([shifted_BT, target_BT])
        chex.assert_shape(target_BTV, (*target_BT.shape, self.vocab_size))
        return (source_BS, shifted_BT), target_BTV

    def make_eval_step(self, model: nn.Module, augmentation: None = None) -> EvalStep:
        """Make the step; its output is the decoded sequence, (B, T).

        It is correct if every token is. There is no augmentation.
        """
        del augmentation

        def eval_step(variables: Any, source_BS: Array, target_BT: Array):
            self._check_examples(source_BS, target_BT)
            logits_BTV: Array = model.apply(
                variables, source_BS, self._shift_right(target_BT), train=False
            )  # type: ignore
            target_BTV = jax.nn.one_hot(target_BT, self.vocab_size)
            loss_B = cross_entropy(logits_BTV, target_BTV).mean(axis=-1)
            decoded_BT = greedy_decode(
                model,  # type: ignore
                variables,
                source_BS,
                start_token=self.num_symbols,
                num_tokens=self.target_length,
            )
            hit_B = (decoded_BT == target_BT).all(axis=-1)
            chex.assert_shape([loss_B, hit_B], (len(target_BT),))
            chex.assert_equal_shape([decoded_BT, target_BT])
            return loss_B, hit_B, decoded_BT

        return eval_step

    def _check_examples(self, source_BS: Array, target_BT: Array) -> None:
        """Assert the shapes of raw examples."""
        chex.assert_shape(source_BS, (None, self.source_length))
        chex.assert_shape(target_BT, (None, self.target_length))
        chex.assert_equal_shape_prefix([source_BS, target_BT], 1)

    def _shift_right(self, target_BT: Array) -> Array:
        """Put the start token first, and drop the last token."""
        start = [(0, 0), (1, 0)]
        return jnp.pad(target_BT, start, constant_values=self.num_symbols)[:, :-1]

    def plot(
        self,
        model: nn.Module,
        variables: Any,
        split: SequenceSplit,
        output_M: np.ndarray,
        folder: pathlib.Path,
    ) -> None:
        """Draw the cross-attention of the first decoded sequence."""
        source_BS, decoded_BT = split.source_BS[:1], output_M[:1]
        weights = compiler.fast_jit(
            functools.partial(
                attention_weights, model, where="*decoder/block_*/cross_attention"
            )
        )(variables, source_BS, self._shift_right(jnp.asarray(decoded_BT)))
        attention_plots.plot_cross_attention(
            source_BS[0],
            decoded_BT[0],
            np.stack([layer[0] for layer in weights]),
            folder / "cross_attention.png",
        )
