"""The contracts of train_jax.learning and train_jax.tasks."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tests import modules
from tests.contracts import Contract
from train_jax.learning import affine, augment, batch, color, mixing, step
from train_jax.learning.state import TrainState
from train_jax.tasks import Classification, Translation
from vit_jax import Seq2SeqTransformer

# Why a public function or method has no contract.
EXEMPT = {
    "train_jax.learning.muon.keep_norm": "takes a tree of any shapes",
    "train_jax.learning.muon.kernel_mask": "takes a tree of any shapes",
    "train_jax.learning.muon.muon": "takes numbers",
    "train_jax.learning.aliases.make_alias": "takes numbers",
    "train_jax.learning.aliases.signature_of": "takes a name",
    "train_jax.learning.layer_decay.layer_factors": "takes arrays of any shape",
    "train_jax.learning.layer_decay.scale_by_layer": "takes a number",
    "train_jax.learning.optim.adam": "takes numbers",
    "train_jax.learning.optim.label_groups": "takes a tree of any shapes",
    "train_jax.learning.optim.last_learning_rate": "reads the optimiser's state",
    "train_jax.learning.optim.make_optimizer": "takes numbers",
    "train_jax.learning.optim.make_update_rule": "takes numbers",
    "train_jax.learning.optim.make_schedule": "takes numbers",
    "train_jax.learning.optim.sgd": "takes numbers",
    "train_jax.learning.state.count_parameters": "takes a tree of any shapes",
    "train_jax.learning.state.kernel_checksums": "takes a tree of any shapes",
    "train_jax.tasks.task_from_json": "takes no arrays",
    "train_jax.tasks.task_to_json": "takes no arrays",
    "train_jax.tasks.classification.Classification.inputs": "takes no arrays",
    "train_jax.tasks.classification.Classification.normalize": "calls another one",
    "train_jax.tasks.classification.Classification.plot": "draws files",
    "train_jax.tasks.task.Task.inputs": "an interface",
    "train_jax.tasks.task.Task.make_eval_step": "an interface",
    "train_jax.tasks.task.Task.plot": "an interface",
    "train_jax.tasks.translation.Translation.inputs": "takes no arrays",
    "train_jax.tasks.translation.Translation.plot": "draws files",
}


class Linear(nn.Module):
    """Softmax regression."""

    @nn.compact
    def __call__(self, image_BHWC, *, train: bool = False):
        return nn.Dense(3)(image_BHWC.reshape(len(image_BHWC), -1))


KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 2)
RAW, LABEL = jnp.ones((4, 2, 2, 1), jnp.uint8), jnp.arange(4) % 3
IMAGE, TARGET = RAW.astype(float), jax.nn.one_hot(LABEL, 3)
SOURCE = jnp.zeros((4, 5), jnp.int32)
STATISTICS = {"mean": (0.0,), "std": (1.0,)}
ORDER = jnp.arange(4)

_model, _tx = Linear(), optax.sgd(0.1)
_loss = functools.partial(step.loss_of_batch, _model)
_variables = modules.variables(_model, IMAGE)
_state = TrainState.create(_variables, _tx)
_batch = (IMAGE,), TARGET
_images = Classification((2, 2, 1), ("a", "b", "c"), **STATISTICS)
_sequences = Translation(7, source_length=5, target_length=5)
_decoder = Seq2SeqTransformer(8, 4, 2, 8, encoder_depth=1, decoder_depth=1)


def _misshaped(state: TrainState) -> TrainState:
    return dataclasses.replace(state, step=jnp.zeros(2, jnp.int32))


def _loss_of_batch(examples: batch.Batch) -> Any:
    return _loss(_state.params, {}, examples, KEY)


_select = functools.partial(
    batch.select_examples,
    batch_size=2,
    batch_sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    shapes=[RAW.shape[1:], ()],
)


def _next_batch(*arguments: Any) -> Any:
    make_batch = _images.make_batch  # a test may have replaced it
    return batch.batch_of_step(make_batch, _select, *arguments, steps_per_epoch=2)


def _batch_of_step(order: Any) -> Any:
    return _next_batch(_state.step, (RAW, LABEL), order, KEY)


def _next_step(state: TrainState) -> Any:
    next_step = step.make_next_step(
        step.make_train_step(_loss, _tx), _next_batch, steps_per_epoch=2
    )
    return next_step(state, (RAW, LABEL), ORDER, KEY)


def _translate(*examples: Any) -> Any:
    variables = modules.variables(_decoder, *_sequences.inputs())
    return _sequences.make_eval_step(_decoder)(variables, *examples)


CONTRACTS = {
    "train_jax.learning.augment.normalize": Contract(
        (RAW,),
        (RAW[0],),
        "jax.numpy.asarray",
        lambda image: augment.normalize(image, **STATISTICS),
    ),
    "train_jax.learning.augment.random_crop": Contract(
        (KEY, RAW),
        (KEY, RAW[0]),
        "jax.lax.dynamic_slice",
        lambda *arrays: augment.random_crop(*arrays, padding=1),
    ),
    "train_jax.learning.augment.random_flip": Contract(
        (KEY, RAW), (KEY, RAW[0]), "jax.numpy.where"
    ),
    "train_jax.learning.augment.alternating_flip": Contract(
        (LABEL, LABEL[0], RAW), (LABEL, LABEL, RAW), "jax.numpy.where"
    ),
    "train_jax.learning.augment.random_erasing": Contract(
        (KEY, IMAGE),
        (KEY, IMAGE[0]),
        "jax.numpy.where",
        lambda *arrays: augment.random_erasing(*arrays, rate=0.5),
    ),
    "train_jax.learning.affine.random_affine": Contract(
        (KEY, RAW),
        (KEY, RAW[0]),
        "train_jax.learning.affine.affine",
        lambda *arrays: affine.random_affine(*arrays, rotation=5.0),
    ),
    "train_jax.learning.affine.affine": Contract(
        (RAW, jnp.ones((len(RAW), 2, 2)), jnp.ones((len(RAW), 2))),
        (RAW, jnp.ones((2, 2)), jnp.ones((len(RAW), 2))),
        "jax.numpy.round",
    ),
    "train_jax.learning.color.color_jitter": Contract(
        (KEY, RAW),
        (KEY, RAW[0]),
        "train_jax.learning.color.adjust_color",
        lambda *arrays: color.color_jitter(*arrays, contrast=0.5),
    ),
    "train_jax.learning.color.adjust_color": Contract(
        (RAW[0], jnp.ones(4)), (RAW, jnp.ones(4)), "jax.numpy.round"
    ),
    "train_jax.learning.augment.augmented_views": Contract(
        (IMAGE,),
        (IMAGE[0],),
        "jax.numpy.pad",
        lambda image: augment.augmented_views(image, "flip_shift"),
        misshape=lambda x: x[:1],
    ),
    "train_jax.learning.trivial_augment.trivial_augment": Contract(
        (KEY, RAW), (KEY, RAW[0]), "train_jax.learning.trivial_augment.apply_operations"
    ),
    "train_jax.learning.trivial_augment.apply_operations": Contract(
        (RAW, LABEL, LABEL / 3),
        (RAW, RAW, LABEL / 3),
        "train_jax.learning.trivial_augment._apply",
    ),
    "train_jax.learning.mixing.mixup": Contract(
        (KEY, IMAGE, TARGET),
        (KEY, IMAGE, LABEL),
        "jax.random.beta",
        lambda *arrays: mixing.mixup(*arrays, alpha=1.0),
        misshape=lambda x: x.reshape((1,) * 5),
    ),
    "train_jax.learning.mixing.mix": Contract(
        (KEY, IMAGE, TARGET),
        (KEY, IMAGE, LABEL),
        "train_jax.learning.mixing.mixup",
        lambda *arrays: mixing.mix(*arrays, mixup_alpha=1.0),
    ),
    "train_jax.learning.mixing.cutmix": Contract(
        (KEY, IMAGE, TARGET),
        (KEY, IMAGE, LABEL),
        "jax.numpy.where",
        lambda *arrays: mixing.cutmix(*arrays, alpha=1.0),
    ),
    "train_jax.learning.augment.augment_batch": Contract(
        (KEY, RAW, LABEL),
        (KEY, RAW[0], LABEL[:2]),
        "train_jax.learning.augment.mix",
        lambda *arrays: augment.augment_batch(*arrays, num_classes=3, **STATISTICS),
    ),
    "train_jax.learning.streams.stream": Contract(
        (KEY, "flip"), (KEYS, "flip"), "jax.random.fold_in"
    ),
    "train_jax.learning.step.cross_entropy": Contract(
        (IMAGE[..., 0, 0], IMAGE[..., 0, 0]),
        (IMAGE[0, 0, 0], IMAGE[0, 0, 0]),
        "optax.softmax_cross_entropy",
    ),
    "train_jax.learning.step.loss_of_batch": Contract(
        (_batch,),
        (((IMAGE,), LABEL),),
        "train_jax.learning.step.cross_entropy",
        _loss_of_batch,
    ),
    "train_jax.learning.step.make_train_step": Contract(
        (_state, _batch, KEY),
        (_misshaped(_state), _batch, KEY),
        "optax.apply_updates",
        step.make_train_step(_loss, _tx),
        blamed="make_train_step.<locals>.train_step",
    ),
    "train_jax.learning.batch.epoch_order": Contract(
        (KEY, 0, 4), (KEY, ORDER, 4), "jax.random.permutation"
    ),
    "train_jax.learning.batch.split_batch": Contract(
        (_batch, 2), (((IMAGE,), TARGET[:1]), 2), "jax.numpy.swapaxes"
    ),
    "train_jax.learning.batch.select_examples": Contract(
        ((RAW, LABEL), ORDER, jnp.int32(0)),
        ((RAW, LABEL[:1]), ORDER, jnp.int32(0)),
        "jax.lax.dynamic_slice",
        _select,
    ),
    "train_jax.learning.batch.take_loaded": Contract(
        ((RAW, LABEL), ORDER, jnp.int32(0)),
        ((RAW, LABEL[:1]), ORDER, jnp.int32(0)),
        "jax.numpy.arange",
        functools.partial(batch.take_loaded, look_up=True),
    ),
    "train_jax.learning.batch.batch_of_step": Contract(
        (ORDER,),
        (ORDER[None],),
        "train_jax.tasks.classification.Classification.make_batch",
        _batch_of_step,
    ),
    "train_jax.learning.step.make_next_step": Contract(
        (_state,),
        (_misshaped(_state),),
        "jax.numpy.where",
        _next_step,
        blamed="make_next_step.<locals>.next_step",
    ),
    "train_jax.tasks.classification.Classification.make_batch": Contract(
        (KEY, RAW, LABEL),
        (KEY, RAW[0], LABEL),
        "train_jax.tasks.classification.augment_batch",
        _images.make_batch,
    ),
    "train_jax.tasks.classification.Classification.make_eval_step": Contract(
        (_variables, RAW, LABEL),
        (_variables, RAW, TARGET),
        "train_jax.tasks.classification.cross_entropy",
        _images.make_eval_step(_model),
        blamed="Classification.make_eval_step.<locals>.eval_step",
    ),
    "train_jax.tasks.translation.Translation.make_batch": Contract(
        (KEY, SOURCE, SOURCE),
        (KEY, SOURCE[0], SOURCE),
        "jax.nn.one_hot",
        _sequences.make_batch,
    ),
    "train_jax.tasks.translation.Translation.make_eval_step": Contract(
        (SOURCE, SOURCE),
        (SOURCE, SOURCE[0]),
        "train_jax.tasks.translation.greedy_decode",
        _translate,
        blamed="Translation.make_eval_step.<locals>.eval_step",
    ),
}
