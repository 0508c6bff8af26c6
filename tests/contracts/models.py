"""The contracts of vit_jax and resnet_jax."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax import AirbenchNet, BasicBlock, BatchNorm, BottleneckBlock, ResNet
from tests import modules
from tests.contracts import Contract, resolve
from vit_jax import (
    AttentionPool,
    ConvStem,
    Decoder,
    DecoderBlock,
    Dropout,
    Encoder,
    EncoderBlock,
    LayerNorm,
    MlpBlock,
    MultiHeadAttention,
    Seq2SeqTransformer,
    SequencePool,
    Transformer,
    ViT,
)

# Why a public function has no contract.
EXEMPT = {
    "resnet_jax.cpu.bits.from_bits": "takes an array of any shape",
    "resnet_jax.cpu.bits.to_bits": "takes an array of any shape",
    "resnet_jax.cpu.chunks.cut": "cuts the first axis of any array",
    "resnet_jax.cpu.windows.lay_windows": "a part of `multiply_windows`",
    "vit_jax.checks.check_at_least": "checks numbers",
    "vit_jax.checks.check_choice": "checks a choice",
    "vit_jax.checks.check_num_outputs": "checks a number",
    "vit_jax.checks.check_positions": "checks a number",
    "vit_jax.checks.check_positive": "checks numbers",
    "vit_jax.checks.check_range": "checks values of any shape",
    "vit_jax.checks.check_rate": "checks a number",
    "vit_jax.checks.check_rates": "checks numbers",
    "vit_jax.checks.is_concrete": "takes values of any shape",
    "vit_jax.dtypes.float32_or_wider": "takes a dtype",
    "vit_jax.layers.make_dense": "makes a layer",
    "vit_jax.stem.grid_of_patches": "returns numbers",
    "resnet_jax.blocks.ResidualBlock": "abstract; its subclasses are called",
    "resnet_jax.blocks.check_at_least_1": "checks numbers",
    "resnet_jax.blocks.make_conv": "makes a layer",
    "resnet_jax.dtypes.float32_or_wider": "takes a dtype",
}


def _init(module: nn.Module) -> Callable[..., Any]:
    return functools.partial(module.init_with_output, jax.random.key(0))


def _with(path: str, *args: Any, **options: Any) -> Callable[..., Any]:
    """Give a function some of its arguments."""
    return functools.partial(resolve(path), *args, **options)


KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, (2, 2))
X, IMAGE = jnp.ones((2, 3, 4)), jnp.ones((2, 8, 8, 3))
KERNEL, ONE = jnp.ones((3, 3, 3, 5)), jnp.ones(4)
TOKENS, MASK = jnp.ones((2, 3), jnp.int32), jnp.ones((3, 3), bool)
WEIGHTS = jnp.full((2, 2, 5, 5), 0.2)
DENSE = "flax.linen.Dense.__call__"
NUMBERS = (((2,), (0,)), ((), ()))
_stack: dict[str, Any] = {"num_heads": 2, "mlp_dim": 8}
_depths = {"encoder_depth": 1, "decoder_depth": 1}
_patches = {"has_class_token": True}
_vit = ViT(3, patch_size=4, width=4, depth=1, num_heads=2)
_sequences = Seq2SeqTransformer(8, 4, 2, 8, **_depths)


def _greedy_decode(*source: Any) -> Any:
    variables = modules.variables(_sequences, TOKENS, TOKENS)
    options = {"start_token": 1, "num_tokens": 2}
    return resolve("vit_jax.decoding.greedy_decode")(
        _sequences, variables, *source, **options
    )


def _attention_weights(*inputs: Any) -> Any:
    variables = modules.variables(_vit, *IMAGE.shape)
    return resolve("vit_jax.capture.attention_weights")(_vit, variables, *inputs)


_pooled = _vit.clone(pool="sequence")


def _pool_weights(image_BHWC: Any) -> Any:
    variables = modules.variables(_pooled, *IMAGE.shape)
    return resolve("vit_jax.capture.pool_weights")(_pooled, variables, image_BHWC)


def _dropout(x: Any) -> Any:
    return Dropout(0.5, deterministic=False).apply({}, x, rngs={"dropout": KEY})


_resnet = ResNet(3, stage_sizes=(1,), width=4)


def _grad_cam(*inputs: Any) -> Any:
    variables = modules.variables(_resnet, *IMAGE.shape)
    return resolve("resnet_jax.interpret.grad_cam")(_resnet, variables, *inputs)


CONTRACTS = {
    "resnet_jax.interpret.grad_cam": Contract(
        (IMAGE, jnp.zeros(2, int)),
        (IMAGE[0], jnp.zeros(2, int)),
        "jax.numpy.einsum",
        _grad_cam,
    ),
    "vit_jax.weights.position.resize_position_embedding": Contract(
        (jnp.ones((1, 5, 3)), (2, 2), (3, 3)),
        (jnp.ones((5, 3)), (2, 2), (3, 3)),
        "jax.image.resize",
        misshape=lambda x: x[:1],
    ),
    "vit_jax.weights.position.resize_patch_embedding": Contract(
        (jnp.ones((12, 5)), 2, 3),
        (jnp.ones(12), 2, 3),
        "jax.numpy.einsum",
        misshape=lambda x: x[..., :-1],
    ),
    "vit_jax.attention.dot_product_attention": Contract(
        (X, X, X), (X[0, 0], X, X), "vit_jax.attention._matmul"
    ),
    "vit_jax.multi_head.MultiHeadAttention": Contract(
        (X, X), (X, X[0]), DENSE, _init(MultiHeadAttention(2)), layer="out"
    ),
    "vit_jax.bfloat16.dot_general": Contract(
        (X[0], X[0].T, (((1,), (0,)), ((), ()))),
        (X[0], X[0].T.astype(jnp.bfloat16), (((1,), (0,)), ((), ()))),
        "vit_jax.bfloat16._multiply",
    ),
    "vit_jax.blocks.MlpBlock": Contract(
        (X,), (X[0, 0, 0],), DENSE, _init(MlpBlock(8)), layer="out"
    ),
    "vit_jax.blocks.EncoderBlock": Contract(
        (X,),
        (X[0],),
        "vit_jax.blocks.EncoderBlock._mlp_sublayer",
        _init(EncoderBlock(**_stack)),
    ),
    "vit_jax.blocks.DecoderBlock": Contract(
        (X, X),
        (X, X[0]),
        "vit_jax.blocks.DecoderBlock._mlp_sublayer",
        _init(DecoderBlock(**_stack)),
    ),
    "vit_jax.decoding.greedy_decode": Contract(
        (TOKENS,), (TOKENS[0],), "vit_jax.decoding._decode", _greedy_decode
    ),
    "vit_jax.capture.attention_weights": Contract(
        (IMAGE,),
        (IMAGE[0, 0, 0, 0],),
        "flax.traverse_util.flatten_dict",
        _attention_weights,
        misshape=lambda x: x[None, None],  # one more is the axis of a scan
    ),
    "vit_jax.capture.pool_weights": Contract(
        (IMAGE,),
        (IMAGE[0],),
        "vit_jax.capture._capture",
        _pool_weights,
        misshape=lambda x: x[:1],
    ),
    "vit_jax.interpret.attention_rollout": Contract(
        ([WEIGHTS],), ([WEIGHTS[0]],), "jax.numpy.einsum"
    ),
    "vit_jax.interpret.patch_relevance": Contract(
        (WEIGHTS[0],),
        (WEIGHTS,),
        "vit_jax.interpret._widen",
        _with("vit_jax.interpret.patch_relevance", **_patches),
    ),
    "vit_jax.interpret.mean_attention_distance": Contract(
        (WEIGHTS,),
        (WEIGHTS[0],),
        "jax.numpy.einsum",
        _with("vit_jax.interpret.mean_attention_distance", grid=(2, 2), **_patches),
    ),
    "vit_jax.interpret.position_similarity": Contract(
        (X[:1],),
        (X[0],),
        "vit_jax.interpret._widen",
        _with("vit_jax.interpret.position_similarity", **_patches),
        misshape=lambda x: x[:, :-1],
    ),
    "vit_jax.layers.merged_dot_general": Contract(
        (X, jnp.ones((4, 5)), NUMBERS),
        (X, ONE, NUMBERS),
        "jax.lax.dot_general",
        lambda *arguments: resolve("vit_jax.layers.merged_dot_general")(
            *arguments, dot_general=jax.lax.dot_general
        ),
    ),
    "vit_jax.layers.random_bytes": Contract(
        (KEY, (2, 3)), (KEYS, (2, 3)), "jax.lax.bitcast_convert_type"
    ),
    "vit_jax.layers.dropout_mask": Contract(
        (KEY, (2, 3)),
        (KEYS, (2, 3)),
        "jax.numpy.expand_dims",
        _with("vit_jax.layers.dropout_mask", rate=0.5),
    ),
    "vit_jax.layers.dropout": Contract(
        (KEY, X),
        (KEY, X[0, 0, 0]),
        "vit_jax.layers.dropout_mask",
        _with("vit_jax.layers.dropout", rate=0.5),
    ),
    "vit_jax.layers.stochastic_depth": Contract(
        (KEY, X),
        (KEY, X[0]),
        "jax.numpy.where",
        _with("vit_jax.layers.stochastic_depth", rate=0.5),
    ),
    "vit_jax.layers.Dropout": Contract(
        (X,), (X[0, 0, 0],), "vit_jax.layers.dropout", _dropout
    ),
    "vit_jax.layers.layer_norm": Contract((X, ONE, ONE), (X, X, ONE), "jax.lax.rsqrt"),
    "vit_jax.layers.LayerNorm": Contract(
        (X,), (X[0, 0, 0],), "vit_jax.layers.layer_norm", _init(LayerNorm())
    ),
    "vit_jax.masks.causal_mask": Contract((3,), None, "jax.numpy.tri"),
    "vit_jax.masks.padding_mask": Contract(
        (TOKENS[0], 3), (TOKENS, 3), "jax.numpy.arange"
    ),
    "vit_jax.masks.combine_masks": Contract(
        (MASK, MASK), (MASK, MASK[None]), "jax.numpy.logical_and"
    ),
    "vit_jax.position.sinusoidal_position": Contract((3, 4), None, "jax.numpy.asarray"),
    "vit_jax.seq2seq.Seq2SeqTransformer": Contract(
        (TOKENS, TOKENS),
        (TOKENS, TOKENS[0]),
        "vit_jax.seq2seq.Seq2SeqTransformer.decode",
        _init(_sequences),
    ),
    "vit_jax.transformer.Encoder": Contract(
        (X,),
        (X[0],),
        "vit_jax.blocks.EncoderBlock.__call__",
        _init(Encoder(depth=1, **_stack)),
    ),
    "vit_jax.transformer.Decoder": Contract(
        (X, X),
        (X, X[0]),
        "vit_jax.blocks.DecoderBlock.__call__",
        _init(Decoder(depth=1, **_stack)),
    ),
    "vit_jax.transformer.Transformer": Contract(
        (X, X),
        (X[0], X),
        "vit_jax.transformer.Decoder.__call__",
        _init(Transformer(**_stack, **_depths)),
    ),
    "vit_jax.pooling.SequencePool": Contract(
        (X,), (X[0],), DENSE, _init(SequencePool())
    ),
    "vit_jax.pooling.AttentionPool": Contract(
        (X,), (X[0],), "vit_jax.blocks.MlpBlock.__call__", _init(AttentionPool(2, 8))
    ),
    "vit_jax.position.sincos2d_position": Contract(
        ((2, 3), 8), None, "numpy.concatenate"
    ),
    "vit_jax.position.rotary_angles": Contract(((2, 3), 8), None, "numpy.pad"),
    "vit_jax.position.rotary_angles_1d": Contract(
        (3, 8), None, "vit_jax.position._turn"
    ),
    "vit_jax.position.rotate": Contract(
        (jnp.ones((1, 2, 3, 4)), jnp.ones((3, 2))),
        (X, jnp.ones((3, 2))),
        "jax.numpy.concatenate",
    ),
    "vit_jax.stem.ConvStem": Contract(
        (IMAGE,),
        (IMAGE[0],),
        "vit_jax.stem._max_pool",
        _init(ConvStem(4, 2)),
    ),
    "vit_jax.stem.patchify": Contract((IMAGE, 4), (IMAGE[0], 4), "jax.numpy.swapaxes"),
    "vit_jax.vit.ViT": Contract(
        (IMAGE,), (IMAGE[0],), DENSE, _init(_vit), layer="head"
    ),
    "resnet_jax.airbench.max_pool": Contract(
        (IMAGE, 2), (IMAGE[0], 2), "jax.numpy.maximum"
    ),
    "resnet_jax.airbench.whitening_kernel": Contract(
        (IMAGE,), (IMAGE[0],), "jax.numpy.concatenate"
    ),
    "resnet_jax.airbench.AirbenchNet": Contract(
        (jnp.ones((2, 9, 9, 3)),),
        (IMAGE[0],),
        DENSE,
        _init(AirbenchNet(3, widths=(4, 4, 4))),
        layer="head",
    ),
    "resnet_jax.blocks.pad_shortcut": Contract(
        (IMAGE, 5, 2), (IMAGE[0], 5, 2), "jax.numpy.pad"
    ),
    "resnet_jax.batch_norm.batch_statistics": Contract(
        (X,), (X[0, 0, 0],), "jax.numpy.square"
    ),
    "resnet_jax.batch_norm.batch_norm": Contract(
        (X, ONE, ONE, ONE, ONE), (X, ONE, X, ONE, ONE), "jax.lax.rsqrt"
    ),
    "resnet_jax.batch_norm.BatchNorm": Contract(
        (X,), (X[0, 0, 0],), "resnet_jax.batch_norm.batch_norm", _init(BatchNorm())
    ),
    "resnet_jax.cpu.bits.transpose_rounded": Contract(
        (KERNEL[0, 0].astype(jnp.bfloat16),),
        (KERNEL.astype(jnp.bfloat16),),
        "jax.numpy.einsum",
    ),
    "resnet_jax.cpu.convolution.conv_general_dilated": Contract(
        (IMAGE, KERNEL, (1, 1), [(1, 1)] * 2),
        (IMAGE[0], KERNEL, (1, 1), [(1, 1)] * 2),
        "resnet_jax.cpu.convolution._convolve",
    ),
    "resnet_jax.cpu.direct.direct_conv3x3": Contract(
        (IMAGE, KERNEL), (IMAGE, KERNEL[0]), "resnet_jax.cpu.direct._convolve"
    ),
    "resnet_jax.cpu.rounded.rounded_conv3x3": Contract(
        (IMAGE, KERNEL), (IMAGE, KERNEL[0]), "resnet_jax.cpu.rounded._convolve"
    ),
    "resnet_jax.cpu.windows.multiply_windows": Contract(
        (IMAGE, KERNEL, (1, 1), ((1, 1),) * 2),
        (IMAGE, KERNEL[0], (1, 1), ((1, 1),) * 2),
        "resnet_jax.cpu.windows._convolve",
    ),
    "resnet_jax.cpu.winograd.conv3x3": Contract(
        (IMAGE, KERNEL), (IMAGE, KERNEL[0]), "resnet_jax.cpu.winograd._conv3x3"
    ),
    "resnet_jax.blocks.BasicBlock": Contract(
        (IMAGE,), (IMAGE[0],), "flax.linen.relu", _init(BasicBlock(4))
    ),
    "resnet_jax.blocks.BottleneckBlock": Contract(
        (IMAGE,), (IMAGE[0],), "flax.linen.relu", _init(BottleneckBlock(4))
    ),
    "resnet_jax.resnet.ResNet": Contract(
        (IMAGE,), (IMAGE[0],), DENSE, _init(ResNet(3, stage_sizes=(1,), width=4))
    ),
}
