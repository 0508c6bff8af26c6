"""The Vision Transformer: patches, parameter counts, pooling, what it rejects."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests import modules
from tests.modules import apply, normal
from vit_jax import MlpBlock, MultiHeadAttention, ViT, ViT_Ti16, patchify
from vit_jax.layers import LayerNorm

IMAGE_BHWC = normal(3, 8, 12, 3)


def _vit(**fields) -> ViT:
    defaults = {"num_classes": 5, "patch_size": 4, "width": 16, "depth": 2}
    return ViT(**(defaults | {"num_heads": 4} | fields))


@functools.cache
def _variables(pool: str = "cls") -> dict:
    return modules.variables(_vit(pool=pool), *IMAGE_BHWC.shape)


def _count(module, *shape: int) -> int:
    """Count the parameters without allocating any."""
    variables = modules.shapes(module, *shape)
    assert set(variables) == {"params"}
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))


PRESETS = {
    "ViT_Ti16": 5_717_416,
    "ViT_S16": 22_050_664,
    "ViT_S32": 22_878_952,
    "ViT_B16": 86_567_656,
    "ViT_B32": 88_224_232,
    "ViT_L16": 304_326_632,
    "ViT_H14": 632_045_800,
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_published_number_of_parameters(name):
    module = getattr(vit_jax, name)(num_classes=1000)
    assert _count(module, 1, 224, 224, 3) == PRESETS[name]


def test_every_preset_has_a_parameter_count():
    exported = {
        name
        for name, value in vars(vit_jax).items()
        if isinstance(value, functools.partial)
    }
    assert exported == set(PRESETS)


@pytest.mark.parametrize("width, expected", [(64, 155_082), (128, 605_066)])
def test_mnist_vit_has_the_documented_number_of_parameters(width, expected):
    module = _vit(num_classes=10, patch_size=7, width=width, depth=3)
    assert _count(module, 1, 28, 28, 1) == expected


def test_multi_head_attention_has_the_documented_number_of_parameters():
    assert _count(MultiHeadAttention(num_heads=8), 1, 4, 512) == 1_050_624


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 8, 12, 3), (1, 4, 8, 2)])
def test_patchify_cuts_squares_row_by_row(shape):
    image_BHWC = np.arange(math.prod(shape)).reshape(shape)
    patches = patchify(jnp.asarray(image_BHWC), 4)
    _, height, width, _ = shape
    expected = [
        image_BHWC[:, y : y + 4, x : x + 4].reshape(shape[0], -1)
        for y in range(0, height, 4)
        for x in range(0, width, 4)
    ]
    np.testing.assert_array_equal(patches, np.stack(expected, axis=1))


def test_patchify_and_dense_equal_a_strided_convolution():
    kernel_PPCD = normal(4, 4, 3, 16, seed=2)
    kernel = kernel_PPCD.reshape(-1, 16)
    x_BTD = jnp.einsum("bte,ed->btd", patchify(IMAGE_BHWC, 4), kernel)
    convolved = jax.lax.conv_general_dilated(
        IMAGE_BHWC,
        kernel_PPCD,
        window_strides=(4, 4),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(x_BTD, convolved.reshape(3, 6, 16), atol=1e-4)


@pytest.mark.parametrize(
    "patch_size, height, width", [(16, 324, 324), (4, 8, 10), (4, 10, 8), (0, 8, 8)]
)
def test_patchify_rejects_a_patch_size_that_does_not_divide(patch_size, height, width):
    message = (
        "^patch_size must divide the image's height and width, got patch_size "
        f"{patch_size} and an image of {height}x{width}$"
    )
    with pytest.raises(ValueError, match=message):
        patchify(jnp.ones((1, height, width, 1)), patch_size)


@pytest.mark.parametrize("shape", [(8, 12, 3), (1, 2, 8, 12, 3)])
def test_vit_rejects_images_of_other_rank(shape):
    with pytest.raises(AssertionError, match="rank"):
        patchify(jnp.ones(shape), 4)
    with pytest.raises(AssertionError, match="rank"):
        apply(_vit(), _variables(), jnp.ones(shape))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("num_classes", [1, 5])
def test_vit_keeps_the_batch_axis_of_a_single_image(pool, num_classes):
    module = _vit(pool=pool, num_classes=num_classes)
    variables = modules.variables(module, *IMAGE_BHWC.shape)
    logits_BY = apply(module, variables, IMAGE_BHWC)
    single_BY = apply(module, variables, IMAGE_BHWC[:1])
    assert logits_BY.shape == (3, num_classes)
    assert single_BY.shape == (1, num_classes)
    np.testing.assert_allclose(single_BY, logits_BY[:1], atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vit_knows_the_order_of_patches_by_the_position_embedding_alone(pool):
    module, params = _vit(pool=pool), _variables(pool)["params"]
    rows_BHWC = IMAGE_BHWC.reshape(3, 2, 4, 12, 3)[:, ::-1].reshape(3, 8, 12, 3)
    before_BY = apply(module, {"params": params}, IMAGE_BHWC)
    after_BY = apply(module, {"params": params}, rows_BHWC)
    assert jnp.abs(before_BY - after_BY).max() > 1e-3

    params = params | {"pos_embedding": jnp.zeros_like(params["pos_embedding"])}
    before_BY = apply(module, {"params": params}, IMAGE_BHWC)
    after_BY = apply(module, {"params": params}, rows_BHWC)
    np.testing.assert_allclose(before_BY, after_BY, atol=1e-5)


def test_vit_has_a_class_token_only_where_it_reads_one():
    assert _variables("cls")["params"]["cls"].shape == (1, 1, 16)
    assert _variables("cls")["params"]["pos_embedding"].shape == (1, 7, 16)
    assert "cls" not in _variables("mean")["params"]
    assert _variables("mean")["params"]["pos_embedding"].shape == (1, 6, 16)


def test_vit_without_position_embedding_takes_the_patches_as_a_set():
    module = _vit(pool="mean", position_embedding=None)
    variables = modules.variables(module, *IMAGE_BHWC.shape)
    assert "pos_embedding" not in variables["params"]
    rows_BHWC = IMAGE_BHWC.reshape(3, 2, 4, 12, 3)[:, ::-1].reshape(3, 8, 12, 3)
    before_BY = apply(module, variables, IMAGE_BHWC)
    after_BY = apply(module, variables, rows_BHWC)
    np.testing.assert_allclose(before_BY, after_BY, atol=1e-5)


@pytest.mark.parametrize(
    "fields, missing",
    [
        ({"mlp_ratio": None}, {"mlp", "mlp_norm"}),
        ({"norm": None}, {"attention_norm", "mlp_norm"}),
        ({"norm": "post", "residual": False}, set()),
    ],
)
def test_vit_leaves_out_of_its_blocks_what_its_fields_say(fields, missing):
    whole = modules.shapes(_vit(), *IMAGE_BHWC.shape)["params"]["encoder"]["block_0"]
    part = modules.shapes(_vit(**fields), *IMAGE_BHWC.shape)["params"]["encoder"]
    assert set(whole) - set(part["block_0"]) == missing


DROPOUT_RATES = ["dropout_rate", "attention_dropout_rate", "embedding_dropout_rate"]


@pytest.mark.parametrize("field", DROPOUT_RATES)
def test_vit_drops_only_in_training_and_by_the_key(field):
    module = _vit(**{field: 0.3})
    exact_BY = apply(module, _variables(), IMAGE_BHWC)
    np.testing.assert_array_equal(apply(_vit(), _variables(), IMAGE_BHWC), exact_BY)

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return apply(module, _variables(), IMAGE_BHWC, train=True, rngs=rngs)

    np.testing.assert_array_equal(train(0), train(0))
    assert jnp.abs(train(0) - train(1)).max() > 1e-3
    assert jnp.abs(train(0) - exact_BY).max() > 1e-3


@pytest.mark.parametrize("field", DROPOUT_RATES)
def test_vit_drops_embedded_tokens_at_their_own_rate(field):
    module = _vit(depth=0, pool="mean", num_classes=16, **{field: 0.5})
    variables = modules.variables(module, *IMAGE_BHWC.shape)
    rngs = {"dropout": jax.random.key(0)}
    exact_BY = apply(module, variables, IMAGE_BHWC)
    logits_BY = apply(module, variables, IMAGE_BHWC, train=True, rngs=rngs)
    changed = jnp.abs(logits_BY - exact_BY).max() > 1e-2
    assert changed == (field == "embedding_dropout_rate")


@pytest.mark.parametrize("pool, num_tokens", [("cls", 7), ("mean", 6)])
def test_vit_capture_leaves_the_logits_as_they_are(pool, num_tokens):
    module, variables = _vit(pool=pool), _variables(pool)
    logits_BY, captured = apply(
        module, variables, IMAGE_BHWC, mutable=("intermediates",)
    )
    expected_BY = apply(module, variables, IMAGE_BHWC)
    # Products with fewer rows may sum in another order.
    np.testing.assert_allclose(logits_BY, expected_BY, atol=1e-5)
    blocks = captured["intermediates"]["encoder"]
    assert set(blocks) == {"block_0", "block_1"}
    for block in blocks.values():
        (weights_BNTS,) = block["attention"]["attention_weights"]
        assert weights_BNTS.shape == (3, 4, num_tokens, num_tokens)
        np.testing.assert_allclose(weights_BNTS.sum(axis=-1), 1, atol=1e-6)


def test_vit_computes_in_bfloat16_with_float32_parameters_and_logits():
    module = _vit(dtype=jnp.bfloat16, representation_size=12)
    variables = modules.variables(module, *IMAGE_BHWC.shape)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
    assert dtypes == {jnp.dtype("float32")}
    logits_BY, captured = apply(
        module,
        variables,
        IMAGE_BHWC,
        mutable=("intermediates",),
        capture_intermediates=True,
    )
    assert logits_BY.dtype == jnp.float32
    (x_BTD,) = captured["intermediates"]["encoder"]["block_1"]["__call__"]
    assert x_BTD.dtype == jnp.bfloat16
    exact_BY = apply(_vit(representation_size=12), variables, IMAGE_BHWC)
    np.testing.assert_allclose(logits_BY, exact_BY, atol=0.05)


def test_vit_is_the_same_under_jit_and_is_traced_once():
    chex.clear_trace_counter()
    module, variables = _vit(), _variables()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def classify(variables, image_BHWC):
        return module.apply(variables, image_BHWC)

    for image_BHWC in (IMAGE_BHWC, -IMAGE_BHWC):
        expected_BY = module.apply(variables, image_BHWC)
        logits_BY = classify(variables, image_BHWC)
        np.testing.assert_allclose(logits_BY, expected_BY, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"pool": "max"}, "pool must be 'cls', 'mean', 'sequence' or 'map', got 'max'"),
        ({"dropout_rate": 1.0}, r"dropout_rate must be in \[0, 1\), got 1.0"),
        (
            {"attention_dropout_rate": -0.1},
            r"attention_dropout_rate must be in \[0, 1\), got -0.1",
        ),
        (
            {"num_heads": 3},
            "width must be divisible by num_heads, got width 16 and num_heads 3",
        ),
        (
            {"patch_size": 5},
            "patch_size must divide the image's height and width, "
            "got patch_size 5 and an image of 8x12",
        ),
    ],
)
def test_vit_rejects_fields_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=f"(?m)^{message}$"):
        modules.shapes(_vit(**fields), *IMAGE_BHWC.shape)


def test_vit_rejects_unknown_fields():
    with pytest.raises(TypeError, match="unexpected keyword argument 'dropout'"):
        _vit(dropout=0.1)


def test_what_is_captured_is_that_of_all_tokens():
    logits_BY, captured = apply(
        _vit(),
        _variables(),
        IMAGE_BHWC,
        mutable=("intermediates",),
        capture_intermediates=True,
    )
    encoder = captured["intermediates"]["encoder"]
    (weights_BNTS,) = encoder["block_1"]["attention"]["attention_weights"]
    assert weights_BNTS.shape == (3, 4, 7, 7)
    assert encoder["__call__"][0].shape == (3, 7, 16)
    expected = apply(_vit(), _variables(), IMAGE_BHWC)
    np.testing.assert_allclose(logits_BY, expected, atol=1e-5)


def test_the_last_block_computes_the_class_token_alone():
    def flops(model):
        lowered = jax.jit(model.apply).lower(_variables(model.pool), IMAGE_BHWC)
        return lowered.cost_analysis()["flops"]

    # With all of its tokens it would be more: one more than there are patches.
    assert flops(_vit()) < flops(_vit(pool="mean"))


def test_presets_start_as_the_authors_code_does():
    model = ViT_Ti16(num_classes=10, depth=1)
    image_BHWC = np.zeros((1, 224, 224, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), image_BHWC)
    params = jax.device_get(variables["params"])
    assert not params["head"]["kernel"].any()
    assert not params["cls"].any()
    kernel, position = params["embedding"]["kernel"], params["pos_embedding"]
    np.testing.assert_allclose(position.std(), 0.02, rtol=0.05)
    # LeCun's: a variance of one over the number of a patch's values.
    np.testing.assert_allclose(kernel.std(), (16 * 16 * 3) ** -0.5, rtol=0.05)
    mlp = params["encoder"]["block_0"]["mlp"]
    for name in ("hidden", "out"):
        np.testing.assert_allclose(mlp[name]["bias"].std(), 1e-6, rtol=0.2)
        fan_in, fan_out = mlp[name]["kernel"].shape
        bound = (6 / (fan_in + fan_out)) ** 0.5
        largest = np.abs(mlp[name]["kernel"]).max()
        np.testing.assert_allclose(largest, bound, rtol=0.01)


def test_the_authors_initialisation_reaches_the_pool():
    model = _vit(width=64, pool="map", initialization="authors")

    @jax.jit
    def start(image_BHWC):  # XLA computes what is returned alone
        params = model.init(jax.random.key(0), image_BHWC)["params"]
        return params["pool"]["mlp"]["hidden"]["bias"]

    bias = start(IMAGE_BHWC)
    np.testing.assert_allclose(bias.std(), 1e-6, rtol=0.2)


def test_the_authors_initialisation_reaches_the_representation():
    model = _vit(width=64, representation_size=512, initialization="authors")
    params = jax.jit(model.init)(jax.random.key(0), IMAGE_BHWC)["params"]
    kernel = params["pre_logits"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 64**-0.5, rtol=0.02)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("gelu", lambda x: 0.5 * x * (1 + math.erf(x / 2**0.5))),
        (
            "gelu_tanh",
            lambda x: (
                0.5 * x * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
            ),
        ),
        ("relu", lambda x: max(x, 0.0)),
    ],
)
def test_the_activation_and_epsilon_are_those_asked_for(activation, expected):
    model = _vit(activation=activation, norm_epsilon=0.5)
    used = []

    def record(next_fun, args, kwargs, context):
        used.append(context.module)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        modules.shapes(model, *IMAGE_BHWC.shape)
    norms = [module for module in used if isinstance(module, LayerNorm)]
    assert len(norms) == 5 and {norm.epsilon for norm in norms} == {0.5}
    (mlp, _) = (module for module in used if isinstance(module, MlpBlock))
    for x in (-3.0, -0.5, 0.0, 0.7, 2.0):
        np.testing.assert_allclose(mlp.activation(x), expected(x), atol=1e-6)


@pytest.mark.parametrize("representation_size", [None, 5])
def test_without_classes_it_gives_the_features_that_the_head_reads(representation_size):
    fields = {"patch_size": 2, "width": 4, "depth": 1, "num_heads": 1}
    fields["representation_size"] = representation_size
    image = normal(2, 4, 4, 1)
    variables = modules.variables(ViT(3, **fields), *image.shape)
    features_BD = apply(ViT(None, **fields), variables, image)
    assert features_BD.shape == (2, representation_size or 4)
    head = variables["params"]["head"]
    logits_BY = features_BD @ head["kernel"] + head["bias"][None]
    expected_BY = apply(ViT(3, **fields), variables, image)
    np.testing.assert_allclose(logits_BY, expected_BY, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_tokens_are_what_the_encoder_returns(pool):
    vit = _vit(pool=pool, num_registers=2, attention_implementation="xla")
    variables = modules.variables(vit, *IMAGE_BHWC.shape)
    capture = {"capture_intermediates": True, "mutable": ("intermediates",)}
    _, captured = vit.apply(variables, IMAGE_BHWC, **capture)
    (expected_BTD,) = captured["intermediates"]["encoder"]["__call__"]
    tokens_BTD = apply(vit, variables, IMAGE_BHWC, return_tokens=True)
    assert tokens_BTD.shape == (3, (pool == "cls") + 2 * 3 + 2, 16)
    np.testing.assert_allclose(tokens_BTD, expected_BTD, atol=1e-5)


@pytest.mark.parametrize("field", ["activation", "initialization"])
def test_an_unknown_word_is_named(field):
    model = ViT(3, patch_size=2, width=4, depth=1, num_heads=1, **{field: "best"})
    with pytest.raises(ValueError, match=f"^{field} must be '.*', got 'best'"):
        model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def test_tokens_are_exported_for_any_number_of_images():
    vit = _vit()
    variables = modules.variables(vit, *IMAGE_BHWC.shape)

    @jax.jit
    def tokens(image_BHWC):
        return vit.apply(variables, image_BHWC, return_tokens=True)

    shape = jax.export.symbolic_shape(f"b, {str(IMAGE_BHWC.shape[1:])[1:-1]}")
    exported = jax.export.export(tokens)(jax.ShapeDtypeStruct(shape, jnp.float32))
    found_BTD = exported.call(IMAGE_BHWC[:2])
    np.testing.assert_allclose(found_BTD, tokens(IMAGE_BHWC)[:2], atol=1e-5)
