"""Blocks and stacks: residuals, order of tokens, masks, dropout, causality."""

import functools

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from tests import modules
from tests.modules import apply, normal
from vit_jax import (
    Decoder,
    DecoderBlock,
    Encoder,
    EncoderBlock,
    MlpBlock,
    MultiHeadAttention,
    Transformer,
    causal_mask,
    padding_mask,
)

X_BTD = normal(2, 5, 16)
MEMORY_BSD = normal(2, 7, 16, seed=1)
STACK = {"num_heads": 4, "mlp_dim": 24, "depth": 2}


def _block(**fields) -> tuple[EncoderBlock, dict]:
    module = EncoderBlock(num_heads=4, mlp_dim=24, **fields)
    return module, modules.variables(module, X_BTD)


def test_encoder_block_is_the_identity_where_its_branches_are_zero():
    module, variables = _block()
    params = variables["params"]
    for branch in ("attention", "mlp"):
        params[branch]["out"] = jax.tree.map(jnp.zeros_like, params[branch]["out"])
    np.testing.assert_array_equal(apply(module, variables, X_BTD), X_BTD)


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_encoder_block_adds_each_branch_of_the_normalised_input(branch):
    module, variables = _block()
    params = variables["params"]
    other = {"attention": "mlp", "mlp": "attention"}[branch]
    params[other]["out"] = jax.tree.map(jnp.zeros_like, params[other]["out"])
    mean_BT1 = X_BTD.mean(axis=-1, keepdims=True)
    var_BT1 = X_BTD.var(axis=-1, keepdims=True)
    norm = jax.tree.map(lambda x: x[None, None], params[f"{branch}_norm"])
    normal_BTD = (X_BTD - mean_BT1) / jnp.sqrt(var_BT1 + 1e-6)
    normal_BTD = normal_BTD * norm["scale"] + norm["bias"]
    layers = {"attention": MultiHeadAttention(4), "mlp": MlpBlock(24)}
    y_BTD = apply(layers[branch], {"params": params[branch]}, normal_BTD)
    out_BTD = apply(module, variables, X_BTD)
    np.testing.assert_allclose(out_BTD, X_BTD + y_BTD, atol=1e-5)


def test_encoder_block_is_equivariant_to_the_order_of_tokens():
    module, variables = _block()
    order = np.array([3, 0, 4, 1, 2])
    out_BTD = apply(module, variables, X_BTD)
    permuted_BTD = apply(module, variables, X_BTD[:, order])
    np.testing.assert_allclose(permuted_BTD, out_BTD[:, order], atol=1e-5)


def test_encoder_block_hides_the_future_behind_a_causal_mask():
    module, variables = _block()
    mask_TS = causal_mask(5)
    out_BTD = apply(module, variables, X_BTD, mask_TS)
    changed_BTD = apply(module, variables, X_BTD.at[:, 3].multiply(-1), mask_TS)
    np.testing.assert_array_equal(out_BTD[:, :3], changed_BTD[:, :3])
    assert (jnp.abs(out_BTD - changed_BTD)[:, 3:].max(axis=-1) > 1e-4).all()


def test_mlp_block_sees_each_token_alone():
    module = MlpBlock(24)
    variables = modules.variables(module, X_BTD)
    out_BTD = apply(module, variables, X_BTD)
    alone_BD = apply(module, variables, X_BTD[:, 2:3])[:, 0]
    np.testing.assert_allclose(out_BTD[:, 2], alone_BD, atol=1e-6)


def test_mlp_block_uses_the_activation_between_its_layers():
    module = MlpBlock(24, activation=jnp.sin)
    variables = modules.variables(module, X_BTD)
    hidden, out = variables["params"]["hidden"], variables["params"]["out"]
    assert hidden["kernel"].shape == (16, 24)
    h_BTF = jnp.sin(X_BTD @ hidden["kernel"] + hidden["bias"][None, None])
    expected_BTD = h_BTF @ out["kernel"] + out["bias"][None, None]
    np.testing.assert_allclose(apply(module, variables, X_BTD), expected_BTD, atol=1e-5)


def test_mlp_block_drops_hidden_units():
    module = MlpBlock(1, dropout_rate=0.5, activation=jnp.ones_like)
    params = jax.tree.map(jnp.zeros_like, modules.variables(module, X_BTD)["params"])
    params["out"]["kernel"] = jnp.ones((1, 16))
    x_BTD = jnp.ones((8, 16, 16))
    rngs = {"dropout": jax.random.key(0)}
    out_BTD = apply(module, {"params": params}, x_BTD, train=True, rngs=rngs)
    # A dropped hidden unit takes all of its token's outputs along.
    dropped = (out_BTD == 0).all(axis=-1).mean()
    assert abs(dropped - 0.5) < 0.15


@pytest.mark.parametrize("field", ["dropout_rate", "attention_dropout_rate"])
def test_encoder_block_drops_only_in_training_and_by_the_key(field):
    module, variables = _block(**{field: 0.3})
    exact_BTD = apply(module, variables, X_BTD)
    plain, _ = _block()
    np.testing.assert_array_equal(apply(plain, variables, X_BTD), exact_BTD)

    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return apply(module, variables, X_BTD, train=True, rngs=rngs)

    np.testing.assert_array_equal(train(0), train(0))
    assert jnp.abs(train(0) - train(1)).max() > 1e-3
    assert jnp.abs(train(0) - exact_BTD).max() > 1e-3


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_encoder_block_drops_on_both_branches(branch):
    module, variables = _block(dropout_rate=0.25)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params[branch]["out"]["bias"] = jnp.ones(16)
    rngs = {"dropout": jax.random.key(0)}
    out_BTD = apply(module, {"params": params}, X_BTD, train=True, rngs=rngs) - X_BTD
    kept_BTD = out_BTD > 0.5
    np.testing.assert_allclose(out_BTD, kept_BTD / 0.75, atol=1e-5)
    assert 0 < kept_BTD.mean() < 1


def test_encoder_block_computes_in_bfloat16_with_float32_parameters():
    module, variables = _block(dtype=jnp.bfloat16)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
    assert dtypes == {jnp.dtype("float32")}
    out_BTD = apply(module, variables, X_BTD.astype(jnp.bfloat16))
    assert out_BTD.dtype == jnp.bfloat16
    exact, _ = _block()
    exact_BTD = apply(exact, variables, X_BTD)
    np.testing.assert_allclose(out_BTD.astype(jnp.float32), exact_BTD, atol=0.05)


@pytest.mark.parametrize("shape", [(5, 16), (1, 2, 5, 16)])
def test_blocks_reject_input_of_other_rank(shape):
    with pytest.raises(AssertionError, match="rank"):
        EncoderBlock(num_heads=4, mlp_dim=24).init(jax.random.key(0), jnp.ones(shape))


def test_an_mlp_takes_any_leading_axes():
    module = MlpBlock(24)
    variables = modules.variables(module, X_BTD)
    expected_BTD = apply(module, variables, X_BTD)
    for shape in ((10, 16), (2, 5, 1, 16), (16,)):
        x = X_BTD[0, 0] if shape == (16,) else X_BTD.reshape(shape)
        expected = expected_BTD[0, 0] if shape == (16,) else expected_BTD.reshape(shape)
        np.testing.assert_allclose(apply(module, variables, x), expected, atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"decode": True, "mutable": ("cache",)}])
def test_a_decoder_with_cross_attention_needs_its_memory(how):
    decoder = Decoder(**STACK)
    variables = modules.variables(decoder, X_BTD, X_BTD)
    if how:
        _, cache = apply(decoder, variables, X_BTD, X_BTD, **how)
        variables |= cache
    with pytest.raises(ValueError, match="memory_BSD must be given: the block has"):
        apply(decoder, variables, X_BTD[:, :1], **how)


def test_a_causal_block_decodes_as_one_without():
    """The mask of the cache is causal already."""
    block = DecoderBlock(num_heads=4, mlp_dim=24)
    variables = modules.variables(block, X_BTD)
    expected_BTD = apply(block, variables, X_BTD, causal=True)
    how = {"causal": True, "decode": True, "mutable": ("cache",)}
    _, cache = apply(block, variables, X_BTD, **how)
    for token in range(5):
        x_B1D = X_BTD[:, token : token + 1]
        out_B1D, cache = apply(block, variables | cache, x_B1D, **how)
        np.testing.assert_allclose(out_B1D[:, 0], expected_BTD[:, token], atol=1e-5)


def test_a_decoder_that_rematerialises_decodes():
    decoder = Decoder(**STACK, remat=True)
    variables = modules.variables(decoder, X_BTD)
    how = {"decode": True, "mutable": ("cache",)}
    _, cache = apply(decoder, variables, X_BTD, **how)
    _, cache = apply(decoder, variables | cache, X_BTD, **how)
    with pytest.raises(ValueError, match="the cache of decode holds 5 tokens"):
        decoder.apply(variables | cache, X_BTD[:, :1], **how)


def test_a_decoder_leaves_causality_to_the_attention(monkeypatch):
    """JAX's implementations then need no mask of (T, T)."""
    decoder = Decoder(**STACK, attention_implementation="xla")
    variables = modules.variables(decoder, X_BTD)
    fused, calls = jax.nn.dot_product_attention, []

    def attend(*args, **kwargs):
        calls.append((kwargs["mask"], kwargs["is_causal"]))
        return fused(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    out_BTD = jax.jit(lambda x_BTD: decoder.apply(variables, x_BTD))(X_BTD)
    assert calls == [(None, True)] * STACK["depth"]
    own_BTD = apply(Decoder(**STACK), variables, X_BTD)
    np.testing.assert_allclose(out_BTD, own_BTD, atol=1e-5)


@pytest.mark.parametrize("length", [3, 7])
def test_an_encoder_is_exported_for_any_number_of_tokens(length):
    encoder = Encoder(**STACK)
    variables = modules.variables(encoder, X_BTD)
    batch, tokens = jax.export.symbolic_shape("b, t")
    shape = jax.ShapeDtypeStruct((batch, tokens, 16), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: encoder.apply(variables, x)))(shape)
    x_BTD = normal(2, length, 16)
    expected_BTD = apply(encoder, variables, x_BTD)
    np.testing.assert_allclose(exported.call(x_BTD), expected_BTD, atol=1e-5)


def _positions_that_change(module, variables, position, *args) -> list[int]:
    """Which outputs depend on the token at a position."""
    out_BTD = apply(module, variables, X_BTD, *args)
    changed_BTD = apply(module, variables, X_BTD.at[:, position].multiply(-1), *args)
    return np.flatnonzero((out_BTD != changed_BTD).any(axis=(0, 2))).tolist()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_encoder_alone_sees_later_tokens_and_a_decoder_alone_does_not(norm):
    encoder = Encoder(**STACK, norm=norm)
    decoder = Decoder(**STACK, norm=norm)
    variables = modules.variables(encoder, X_BTD)
    # Without a memory a decoder has the parameters of an encoder.
    shapes = jax.tree.map(jnp.shape, variables)
    assert jax.tree.map(jnp.shape, modules.variables(decoder, X_BTD)) == shapes
    for position in range(5):
        everywhere = _positions_that_change(encoder, variables, position)
        onwards = _positions_that_change(decoder, variables, position)
        assert everywhere == [0, 1, 2, 3, 4]
        assert onwards == list(range(position, 5))
    np.testing.assert_allclose(
        apply(encoder, variables, X_BTD, causal_mask(5)),
        apply(decoder, variables, X_BTD),
        atol=1e-6,
    )


def test_a_decoder_joins_a_mask_to_the_causal_one():
    decoder = Decoder(**STACK)
    variables = modules.variables(decoder, X_BTD, MEMORY_BSD)
    mask = padding_mask(jnp.array([2, 5]), 5)
    out_BTD = apply(decoder, variables, X_BTD, MEMORY_BSD, mask)
    changed_BTD = X_BTD.at[:, 2].multiply(-1)
    changed_BTD = apply(decoder, variables, changed_BTD, MEMORY_BSD, mask)
    same_BT = (out_BTD == changed_BTD).all(axis=-1)
    np.testing.assert_array_equal(
        same_BT, [[True, True, False, True, True], [True, True, False, False, False]]
    )


def test_a_decoder_attends_to_the_memory_that_its_mask_leaves():
    decoder = DecoderBlock(num_heads=4, mlp_dim=24)
    variables = modules.variables(decoder, X_BTD, MEMORY_BSD)
    mask = padding_mask(jnp.array([3, 7]), 7)

    def decode(memory_BSD):
        return apply(decoder, variables, X_BTD, memory_BSD, None, mask)

    out_BTD = decode(MEMORY_BSD)
    hidden_BTD = decode(MEMORY_BSD.at[:, 3:].multiply(-1))
    np.testing.assert_array_equal(out_BTD[0], hidden_BTD[0])
    assert (jnp.abs(out_BTD - hidden_BTD)[1].max(axis=-1) > 1e-4).all()


@pytest.mark.parametrize("memory", [True, False])
def test_decoding_token_by_token_equals_decoding_at_once(memory):
    decoder = Decoder(**STACK)
    args = (MEMORY_BSD,) if memory else ()
    variables = modules.variables(decoder, X_BTD, *args)
    expected_BTD = apply(decoder, variables, X_BTD, *args)
    how = {"decode": True, "mutable": ("cache",)}
    _, cache = apply(decoder, variables, X_BTD, *args, **how)
    outs = []
    for part_BTD in (X_BTD[:, :1], X_BTD[:, 1:2], X_BTD[:, 2:]):
        # What the memory's keys and values are is in the cache.
        blank = tuple(jnp.full_like(x, jnp.nan) for x in args)
        out_BTD, cache = apply(decoder, variables | cache, part_BTD, *blank, **how)
        outs.append(out_BTD)
    np.testing.assert_allclose(jnp.concatenate(outs, axis=1), expected_BTD, atol=1e-5)


def test_transformer_has_the_parameters_of_torch():
    module = Transformer(
        num_heads=4, mlp_dim=32, encoder_depth=2, decoder_depth=2, final_norm=True
    )
    variables = modules.variables(module, X_BTD, X_BTD)
    leaves = jax.tree.leaves(variables)
    assert sum(leaf.size for leaf in leaves) == 11_200
    assert apply(module, variables, X_BTD, X_BTD).shape == (2, 5, 16)


@pytest.mark.parametrize("norm", ["pre", "post", None])
@pytest.mark.parametrize("residual", [True, False])
def test_a_block_has_the_parts_that_its_fields_name(norm, residual):
    module, variables = _block(norm=norm, residual=residual)
    norms = {"attention_norm", "mlp_norm"} if norm else set()
    assert set(variables["params"]) == {"attention", "mlp"} | norms
    params = variables["params"]
    params["mlp"]["out"] = jax.tree.map(jnp.zeros_like, params["mlp"]["out"])
    out_BTD = apply(module, variables, X_BTD)
    if norm == "post":
        # Nothing goes into the last LayerNorm, so all tokens come out alike.
        assert bool((out_BTD == out_BTD[:1, :1]).all()) == (not residual)
    else:
        assert bool((out_BTD == 0).all()) == (not residual)


def test_a_block_without_mlp_has_attention_alone():
    module = EncoderBlock(num_heads=4, mlp_dim=None)
    assert set(modules.variables(module, X_BTD)["params"]) == {
        "attention",
        "attention_norm",
    }


def test_blocks_name_the_norms_that_there_are():
    with pytest.raises(ValueError, match="norm must be 'pre', 'post' or None, got"):
        modules.shapes(EncoderBlock(num_heads=4, mlp_dim=8, norm="batch"), X_BTD)


def _loss_and_gradient(module, params):
    def loss(params):
        out_BTD = module.apply(
            {"params": params},
            X_BTD,
            causal_mask(5),
            train=True,
            rngs={"dropout": jax.random.key(0)},
        )
        return (out_BTD**2).sum()

    return jax.value_and_grad(loss)(params)


_compiled_loss_and_gradient = jax.jit(_loss_and_gradient, static_argnums=0)


def test_queries_and_keys_are_normalised_with_the_epsilon_of_the_block():
    fields = {"num_heads": 2, "mlp_dim": None, "norm": None, "normalize_qk": True}
    variables = modules.variables(EncoderBlock(**fields), X_BTD)
    small, large = (
        apply(EncoderBlock(**fields, norm_epsilon=epsilon), variables, X_BTD)
        for epsilon in (1e-6, 1.0)
    )
    assert np.abs(small - large).max() > 1e-3


def test_remat_changes_nothing_but_the_memory():
    fields = STACK | {"dropout_rate": 0.5}
    params = modules.variables(Encoder(**fields), X_BTD)["params"]
    plain, remat = (
        _compiled_loss_and_gradient(Encoder(**fields, remat=remat), params)
        for remat in (False, True)
    )
    # XLA may sum in another order; dropping other elements would change them by far.
    chex.assert_trees_all_close(remat, plain, rtol=1e-4, atol=1e-4)
    jaxpr = jax.make_jaxpr(_loss_and_gradient, static_argnums=0)
    assert "remat" in str(jaxpr(Encoder(**fields, remat=True), params))
    assert "remat" not in str(jaxpr(Encoder(**fields), params))


def test_remat_of_a_transformer_changes_nothing_but_the_memory():
    fields = {"num_heads": 2, "mlp_dim": 8, "encoder_depth": 1, "decoder_depth": 1}
    rngs = {"dropout": jax.random.key(0)}
    params = modules.variables(Transformer(**fields), X_BTD, X_BTD)["params"]

    def loss(params, module):
        how = {"train": True, "rngs": rngs}
        return (module.apply({"params": params}, X_BTD, X_BTD, **how) ** 3).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain, remat = (
        gradient(params, Transformer(**fields, remat=remat)) for remat in (False, True)
    )
    chex.assert_trees_all_close(remat, plain, rtol=1e-4, atol=1e-4)
    jaxpr = jax.make_jaxpr(jax.grad(loss), static_argnums=1)
    found = str(jaxpr(params, Transformer(**fields, remat=True)))
    assert found.count("name=checkpoint") == 2 or found.count("remat") >= 2
    assert "remat" not in str(jaxpr(params, Transformer(**fields)))


@pytest.mark.parametrize("remat", [False, True])
def test_scan_runs_one_block_many_times(remat):
    params = modules.variables(Encoder(**STACK), X_BTD)["params"]
    blocks = [params[f"block_{layer}"] for layer in range(STACK["depth"])]
    stacked = {
        "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks),
        "norm": params["norm"],
    }
    module = Encoder(**STACK, scan=True, remat=remat)
    chex.assert_trees_all_equal_shapes(
        modules.variables(module, X_BTD)["params"], stacked
    )
    loss, gradient = _compiled_loss_and_gradient(module, stacked)
    expected, plain = _compiled_loss_and_gradient(Encoder(**STACK), params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for layer in range(STACK["depth"]):
        of_layer = jax.tree.map(lambda x, i=layer: x[i], gradient["blocks"])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            of_layer,
            plain[f"block_{layer}"],
        )


def test_scanned_blocks_drop_each_their_own():
    fields = {**STACK, "mlp_dim": None, "dropout_rate": 0.5, "final_norm": False}
    module = Encoder(**fields, scan=True)
    params = modules.variables(module, X_BTD)["params"]
    # Each of the two blocks adds ones, half of them dropped and the others doubled.
    out = params["blocks"]["attention"]["out"]
    out["kernel"], out["bias"] = (
        jnp.zeros_like(out["kernel"]),
        jnp.ones_like(out["bias"]),
    )
    rngs = {"dropout": jax.random.key(0)}
    out_BTD = apply(module, {"params": params}, X_BTD, train=True, rngs=rngs)
    added, counts = np.unique(np.round(out_BTD - X_BTD, 3), return_counts=True)
    np.testing.assert_array_equal(added, [0, 2, 4])
    assert counts.min() > X_BTD.size / 8


@pytest.mark.parametrize(
    ("fields", "num_outputs"),
    [
        ({}, 1),
        ({}, 3),
        ({"norm": "post"}, 3),
        ({"norm": None, "residual": False}, 3),
        ({"mlp_dim": None}, 3),
        ({"remat": True}, 3),
        ({"attention_implementation": "xla"}, 3),
        ({"scan": True}, 3),
        ({"depth": 0}, 3),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_tokens_that_nobody_asks_for_are_not_computed(fields, num_outputs):
    everything = Encoder(**(STACK | fields))
    short = everything.copy(num_outputs=num_outputs)
    variables = modules.variables(everything, X_BTD)
    chex.assert_trees_all_equal_shapes(modules.variables(short, X_BTD), variables)
    mask = causal_mask(5)

    def first(module, params):
        return module.apply({"params": params}, X_BTD, mask)[:, :num_outputs]

    @jax.jit
    def gradient(params):
        return [
            jax.grad(lambda p, m=module: (first(m, p) ** 3).sum())(params)
            for module in (everything, short)
        ]

    params = variables.get("params", {})
    out_BTD = apply(short, {"params": params}, X_BTD, mask)
    assert out_BTD.shape == (2, num_outputs, 16)
    expected_BTD = apply(everything, {"params": params}, X_BTD, mask)
    np.testing.assert_allclose(out_BTD, expected_BTD[:, :num_outputs], atol=1e-5)
    expected, found = gradient(params)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_last_block_multiplies_for_the_tokens_asked_for_alone():
    def flops(num_outputs):
        module = Encoder(**STACK, num_outputs=num_outputs)
        variables = modules.variables(module, X_BTD)
        lowered = jax.jit(module.apply).lower(variables, X_BTD)
        return lowered.cost_analysis()["flops"]

    assert flops(1) < 0.75 * flops(None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),  # the paper's
        ({"norm": "pre"}, True),
        ({"norm": "pre", "final_norm": False}, False),
        ({"final_norm": True}, True),  # PyTorch's
    ],
)
def test_a_transformer_ends_in_a_norm_where_its_blocks_do_not(fields, expected):
    model = Transformer(
        num_heads=2, mlp_dim=8, encoder_depth=1, decoder_depth=1, **fields
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), X_BTD, X_BTD)
    for part in ("encoder", "decoder"):
        assert ("norm" in shapes["params"][part]) == expected


def test_a_precision_of_the_products_reaches_all_of_them():
    """That of `nn.Dense`, None, does not take its place."""
    multiply = functools.partial(jax.lax.dot_general, precision="highest")
    module, variables = _block(dot_general=multiply)
    jaxpr = jax.make_jaxpr(module.apply)(variables, X_BTD)
    products = str(jaxpr).count("dot_general[")
    assert products == 8
    assert str(jaxpr).count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 8


def test_a_cached_memory_has_no_causal_order():
    attention, x_BTD = MultiHeadAttention(2), normal(2, 3, 8)
    with pytest.raises(ValueError, match="causal must be False for a memory"):
        attention.init(jax.random.key(0), x_BTD, x_BTD, causal=True, decode=True)
