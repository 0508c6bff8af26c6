"""Turn one sequence of tokens into another."""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.config.models import SEQUENCE_MODELS
from train_jax.data import SequenceSplit
from train_jax.devices import compiler
from train_jax.learning.step import Batch, cross_entropy
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

    models = tuple(SEQUENCE_MODELS)

    @property
    def model_fields(self) -> dict[str, Any]:
        """The size of the vocabulary: the symbols and the start token."""
        return {"vocab_size": self.num_symbols + 1}

    def inputs(self) -> tuple[Array, ...]:
        """One source and one target."""
        lengths = (self.source_length, self.target_length)
        return tuple(jnp.zeros((1, length), jnp.int32) for length in lengths)

    def make_batch(self, key: Array, *examples: Array) -> Batch:
        """Shift the targets: the model is to tell each token from those before it."""
        del key
        source_BS, target_BT = examples
        known_BT = self._known(target_BT)
        return (source_BS, known_BT), jax.nn.one_hot(target_BT, self.num_symbols + 1)

    def make_eval_step(self, model: nn.Module) -> EvalStep:
        """Make the step; an answer is a decoded sequence, right if every token is."""

        def eval_step(variables: Any, source_BS: Array, target_BT: Array):
            logits_BTV: Array = model.apply(
                variables, source_BS, self._known(target_BT), train=False
            )  # type: ignore
            target_BTV = jax.nn.one_hot(target_BT, self.num_symbols + 1)
            loss_B = cross_entropy(logits_BTV, target_BTV).mean(axis=-1)
            decoded_BT = greedy_decode(
                model,  # type: ignore
                variables,
                source_BS,
                start_token=self.num_symbols,
                num_tokens=self.target_length,
            )
            return loss_B, (decoded_BT == target_BT).all(axis=-1), decoded_BT

        return eval_step

    def plot(
        self,
        model: nn.Module,
        variables: Any,
        split: SequenceSplit,
        output_M: np.ndarray,
        folder: pathlib.Path,
    ) -> None:
        """Draw what each token of the first answer looks at in its source."""
        source_BS, target_BT = split.source_BS[:1], output_M[:1]
        weights = compiler.fast_jit(
            functools.partial(
                attention_weights, model, where="*decoder/block_*/cross_attention"
            )
        )(variables, source_BS, self._known(jnp.asarray(target_BT)))
        attention_plots.plot_cross_attention(
            source_BS[0],
            target_BT[0],
            np.stack([layer[0] for layer in weights]),
            folder / "cross_attention.png",
        )

    def _known(self, target_BT: Array) -> Array:
        """What is known before each token: the start token and those before it."""
        start = [(0, 0), (1, 0)]
        return jnp.pad(target_BT, start, constant_values=self.num_symbols)[:, :-1]
