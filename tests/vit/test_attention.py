"""Attention: what it computes, what masks and dropout do to it, what it rejects."""

import functools

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import modules
from tests.modules import apply, normal
from vit_jax import (
    MultiHeadAttention,
    causal_mask,
    combine_masks,
    dot_product_attention,
    padding_mask,
)


def _qkv(*batch: int, num_queries: int = 5, num_keys: int = 7) -> tuple:
    query = normal(*batch, num_queries, 8)
    return (
        query,
        normal(*batch, num_keys, 8, seed=1),
        normal(*batch, num_keys, 6, seed=2),
    )


@functools.partial(jax.jit, static_argnames="dropout")
def _attend(*args, **kwargs):
    return dot_product_attention(*args, return_weights=True, **kwargs)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 3, 4)])
def test_attention_is_the_formula_for_any_leading_axes(batch):
    query, key, value = map(np.asarray, _qkv(*batch))
    out, weights = map(np.asarray, _attend(query, key, value))
    for index in np.ndindex(batch):
        expected_TS = np.exp(query[index] @ key[index].T / np.sqrt(8))
        expected_TS /= expected_TS.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(weights[index], expected_TS, atol=1e-6)
        np.testing.assert_allclose(out[index], expected_TS @ value[index], atol=1e-5)


@pytest.mark.parametrize("mask", [None, "causal"])
def test_attention_weights_sum_to_one(mask):
    query, key, value = _qkv(2, 3)
    mask = None if mask is None else causal_mask(5, 7)
    _, weights = _attend(query, key, value, mask)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert (weights >= 0).all()


def test_attention_returns_the_output_alone_by_default():
    query, key, value = _qkv(2)
    out, _ = _attend(query, key, value)
    alone = jax.jit(dot_product_attention)(query, key, value)
    np.testing.assert_allclose(alone, out, atol=1e-6)


def test_attention_ignores_masked_keys():
    query, key, value = _qkv(2, 3)
    mask_S = np.array([True, False, True, True, False, True, True])
    mask_TS = jnp.asarray(mask_S)[None].repeat(5, axis=0)
    out, weights = _attend(query, key, value, mask_TS)
    masked = np.flatnonzero(~mask_S)
    noisy_key, noisy_value = (x.at[..., masked, :].add(100) for x in (key, value))
    out_noise, _ = _attend(query, noisy_key, noisy_value, mask_TS)
    np.testing.assert_array_equal(out, out_noise)
    assert (weights[..., ~mask_S] == 0).all()
    without, _ = _attend(query, key[..., mask_S, :], value[..., mask_S, :])
    np.testing.assert_allclose(out, without, atol=1e-6)


def test_attention_weights_a_fully_masked_row_uniformly():
    query, key, value = _qkv(2)
    mask_TS = jnp.ones((5, 7), bool).at[1].set(False)
    out, weights = _attend(query, key, value, mask_TS)
    np.testing.assert_allclose(weights[:, 1], 1 / 7, atol=1e-6)
    np.testing.assert_allclose(out[:, 1], value.mean(axis=1), atol=1e-6)
    gradient = jax.grad(
        lambda *qkv: dot_product_attention(*qkv, mask_TS).sum(), (0, 1, 2)
    )
    gradients = jax.jit(gradient)(query, key, value)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_survives_large_logits(masked):
    query, key, value = _qkv(2)
    mask = causal_mask(5, 7) if masked else None
    out, weights = _attend(1e3 * query, 1e3 * key, value, mask)
    assert jnp.isfinite(out).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


def test_attention_rejects_a_mask_that_is_not_boolean():
    with pytest.raises(AssertionError, match="type"):
        dot_product_attention(*_qkv(2), jnp.ones((5, 7)))


@pytest.mark.parametrize("broken", ["key", "value"])
def test_attention_rejects_shapes_that_do_not_fit(broken):
    qkv = dict(zip(("query", "key", "value"), _qkv(2), strict=True))
    qkv[broken] = qkv[broken][:, :-1, :-1]
    with pytest.raises(AssertionError, match="shape"):
        dot_product_attention(**qkv)


def test_attention_runs_the_softmax_in_float32_and_returns_bfloat16():
    qkv = [x.astype(jnp.bfloat16) for x in _qkv(2)]
    out, weights = _attend(*qkv)
    assert out.dtype == weights.dtype == jnp.bfloat16
    equations = jax.make_jaxpr(dot_product_attention)(*qkv).eqns
    dtypes = {e.invars[0].aval.dtype for e in _flatten(equations) if _is_exp(e)}
    assert dtypes == {jnp.dtype("float32")}
    expected, _ = _attend(*_qkv(2))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)


def _is_exp(equation) -> bool:
    return equation.primitive.name in ("exp", "exp2")


def _flatten(equations):
    """Yield the equations and those of the functions they call."""
    for equation in equations:
        yield equation
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            yield from _flatten(getattr(inner, "eqns", ()))


def test_attention_drops_weights_but_returns_them_whole():
    query, key, value = _qkv(2)
    out, weights = _attend(query, key, value, dropout=lambda w: w.at[..., 0].set(0))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    expected = jnp.einsum("bts,bsv->btv", weights[..., 1:], value[:, 1:])
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("num_queries, num_keys", [(1, 1), (4, None), (2, 5), (5, 5)])
def test_causal_mask_lets_the_last_queries_see_what_came_before(num_queries, num_keys):
    mask_TS = causal_mask(num_queries, num_keys)
    num_keys = num_queries if num_keys is None else num_keys
    assert mask_TS.shape == (num_queries, num_keys)
    assert mask_TS.dtype == bool
    mask_TS = np.asarray(mask_TS)
    for t, s in np.ndindex(mask_TS.shape):
        assert mask_TS[t, s] == (s <= t + num_keys - num_queries)


@pytest.mark.parametrize("num_queries", [0, 4])
def test_causal_mask_rejects_more_queries_than_keys(num_queries):
    message = rf"^num_queries must be in \[1, num_keys=3\], got {num_queries}$"
    with pytest.raises(ValueError, match=message):
        causal_mask(num_queries, 3)


def test_padding_mask_hides_what_lies_beyond_the_length():
    mask_B11S = padding_mask(jnp.array([0, 2, 4]), 4)
    assert mask_B11S.shape == (3, 1, 1, 4)
    expected_BS = [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    np.testing.assert_array_equal(mask_B11S[:, 0, 0], np.array(expected_BS, bool))


def test_padding_mask_rejects_lengths_of_two_axes():
    with pytest.raises(AssertionError, match="rank"):
        padding_mask(jnp.ones((2, 1), int), 4)


def _module(**fields) -> tuple[MultiHeadAttention, dict]:
    module = MultiHeadAttention(num_heads=4, **fields)
    return module, modules.variables(module, 2, 5, 16)


def _weights_BNTS(module, *args, **kwargs) -> jax.Array:
    _, captured = apply(module, *args, mutable=("intermediates",), **kwargs)
    return captured["intermediates"]["attention_weights"][0]


@pytest.mark.parametrize("batch", [1, 2])
def test_multi_head_attention_mixes_tokens_within_an_image(batch):
    module, variables = _module()
    x_BTD = normal(batch, 5, 16)
    assert _weights_BNTS(module, variables, x_BTD).shape == (batch, 4, 5, 5)
    jacobian_BTDBTD = jax.jit(jax.jacobian(functools.partial(module.apply, variables)))(
        x_BTD
    )
    influence_BTBT = np.abs(jacobian_BTDBTD).max(axis=(2, 5))
    for b, c in np.ndindex(batch, batch):
        assert (influence_BTBT[b, :, c] > 1e-6).all() == (b == c)
        assert (influence_BTBT[b, :, c] == 0).all() == (b != c)


@pytest.mark.parametrize("projection", ["query", "key"])
def test_multi_head_attention_gives_each_head_its_own_projection(projection):
    module, variables = _module()
    x_BTD = normal(2, 5, 16)
    before_BNTS = _weights_BNTS(module, variables, x_BTD)
    for head in range(4):
        columns = slice(4 * head, 4 * head + 4)
        params = jax.tree.map(lambda x: x, variables["params"])
        kernel_DD = params[projection]["kernel"]
        params[projection]["kernel"] = kernel_DD.at[:, columns].multiply(-1)
        after_BNTS = _weights_BNTS(module, {"params": params}, x_BTD)
        changed_N = jnp.abs(after_BNTS - before_BNTS).max(axis=(0, 2, 3)) > 1e-3
        np.testing.assert_array_equal(changed_N, np.arange(4) == head)


def test_multi_head_attention_gives_each_head_its_own_values():
    module, variables = _module()
    x_BTD = normal(2, 5, 16)
    params = variables["params"]
    params["out"]["kernel"] = jnp.eye(16)
    before_BTD = apply(module, variables, x_BTD)
    kernel_DD = params["value"]["kernel"]
    params["value"]["kernel"] = kernel_DD.at[:, 4:8].multiply(-1)
    changed_D = (apply(module, variables, x_BTD) != before_BTD).all(axis=(0, 1))
    np.testing.assert_array_equal(changed_D, np.arange(16) // 4 == 1)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1, 5, 7), (2, 1, 1, 7), (2, 4, 5, 7)])
def test_multi_head_attention_ignores_masked_memory(shape):
    module, variables = _module()
    query_BTD, memory_BSD = normal(2, 5, 16), normal(2, 7, 16, seed=1)
    mask = jnp.ones(shape, bool).at[..., 4:].set(False)
    out_BTD = apply(module, variables, query_BTD, memory_BSD, mask)
    changed_BSD = memory_BSD.at[:, 4:].add(10)
    changed_BTD = apply(module, variables, query_BTD, changed_BSD, mask)
    np.testing.assert_array_equal(out_BTD, changed_BTD)
    short_BTD = apply(module, variables, query_BTD, memory_BSD[:, :4])
    np.testing.assert_allclose(out_BTD, short_BTD, atol=1e-6)


def test_multi_head_attention_masks_each_head_by_its_own_row():
    module, variables = _module()
    x_BTD = normal(2, 5, 16)
    mask_BNTS = jax.random.bernoulli(jax.random.key(4), 0.5, (2, 4, 5, 5))
    mask_BNTS = mask_BNTS.at[..., 0].set(True)
    weights_BNTS = _weights_BNTS(module, variables, x_BTD, mask=mask_BNTS)
    np.testing.assert_array_equal(weights_BNTS > 0, mask_BNTS)


def test_multi_head_attention_attends_to_itself_without_memory():
    module, variables = _module()
    x_BTD = normal(2, 5, 16)
    out_BTD = apply(module, variables, x_BTD)
    np.testing.assert_array_equal(out_BTD, apply(module, variables, x_BTD, x_BTD))
    assert jnp.abs(out_BTD - apply(module, variables, x_BTD, -x_BTD)).max() > 0.1


def test_multi_head_attention_capture_leaves_the_output_as_it_is():
    module, variables = _module()
    initial = modules.shapes(module, 2, 5, 16)
    assert set(initial) == {"params"}
    x_BTD = normal(2, 5, 16)
    out_BTD, _ = apply(module, variables, x_BTD, mutable=("intermediates",))
    np.testing.assert_array_equal(out_BTD, apply(module, variables, x_BTD))


def test_multi_head_attention_drops_weights_and_scales_the_rest():
    module, variables = _module(dropout_rate=0.25)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["value"]["bias"] = jnp.ones(16)
    params["out"]["kernel"] = jnp.eye(16)
    query_BTD, memory_BSD = normal(8, 64, 16), normal(8, 1, 16, seed=1)
    # One key has weight 1, so that the output is the weight itself, once per head.
    out_BTD = apply(
        module,
        {"params": params},
        query_BTD,
        memory_BSD,
        train=True,
        rngs={"dropout": jax.random.key(0)},
    )
    kept_BTD = out_BTD > 0
    np.testing.assert_allclose(out_BTD, kept_BTD / 0.75, rtol=1e-6)
    assert abs(kept_BTD.mean() - 0.75) < 0.05
    kept_BTNK = kept_BTD.reshape(8, 64, 4, 4)
    np.testing.assert_array_equal(kept_BTNK, kept_BTNK[..., :1].repeat(4, axis=-1))
    assert not (kept_BTNK == kept_BTNK[:, :, :1]).all()


def test_multi_head_attention_needs_a_key_for_dropout():
    module, variables = _module(dropout_rate=0.25)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        apply(module, variables, normal(2, 5, 16), train=True)


def test_multi_head_attention_computes_in_bfloat16_with_float32_parameters():
    module, variables = _module(dtype=jnp.bfloat16)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(variables)}
    assert dtypes == {jnp.dtype("float32")}
    x_BTD = normal(2, 5, 16)
    out_BTD = apply(module, variables, x_BTD)
    assert out_BTD.dtype == jnp.bfloat16
    exact_BTD = apply(MultiHeadAttention(num_heads=4), variables, x_BTD)
    np.testing.assert_allclose(out_BTD.astype(jnp.float32), exact_BTD, atol=0.05)


@pytest.mark.parametrize("num_heads", [0, 3, 32])
def test_multi_head_attention_rejects_heads_that_do_not_divide_the_width(num_heads):
    message = (
        "(?m)^width must be divisible by num_heads, "
        f"got width 16 and num_heads {num_heads}$"
    )
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(num_heads).init(jax.random.key(0), jnp.ones((2, 5, 16)))


@pytest.mark.parametrize("shape", [(5,), (2, 5, 5)])
def test_multi_head_attention_rejects_a_mask_of_other_axes(shape):
    module, variables = _module()
    message = r"^mask must have the axes \(T, S\) or \(B, N, T, S\), got shape \("
    with pytest.raises(ValueError, match=message):
        apply(module, variables, jnp.ones((2, 5, 16)), mask=jnp.ones(shape, bool))


@pytest.mark.parametrize("query", [(5, 16), (1, 2, 5, 16)])
def test_multi_head_attention_rejects_a_query_of_other_rank(query):
    module, variables = _module()
    with pytest.raises(AssertionError, match="rank"):
        apply(module, variables, jnp.ones(query))


@pytest.mark.parametrize("memory", [(1, 5, 16), (5, 16)])
def test_multi_head_attention_rejects_memory_that_does_not_fit(memory):
    module, variables = _module()
    with pytest.raises(AssertionError, match="shape"):
        apply(module, variables, jnp.ones((2, 5, 16)), jnp.ones(memory))


def test_the_memory_may_have_another_width():
    query_BTD, memory_BSE = normal(2, 5, 16), normal(2, 7, 8, seed=1)
    module = MultiHeadAttention(num_heads=4)
    variables = modules.variables(module, query_BTD, memory_BSE)
    assert variables["params"]["key"]["kernel"].shape == (8, 16)
    # The same as a memory of the query's width, whose other channels are zero.
    wide_BSD = jnp.pad(memory_BSE, [(0, 0), (0, 0), (0, 8)])
    params = dict(variables["params"])
    for name in ("key", "value"):
        kernel = jnp.pad(params[name]["kernel"], [(0, 8), (0, 0)], constant_values=9)
        params[name] = {**params[name], "kernel": kernel}
    expected = apply(module, {"params": params}, query_BTD, wide_BSD)
    actual = apply(module, variables, query_BTD, memory_BSE)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("num_queries", [5, 3, 7])
@pytest.mark.parametrize("implementation", ["own", "xla"])
@pytest.mark.parametrize("mask", [None, "padding"])
def test_causal_attention_equals_a_causal_mask(num_queries, implementation, mask):
    query_BTD, memory_BSD = normal(2, num_queries, 16), normal(2, 5, 16, seed=1)
    module = MultiHeadAttention(4, attention_implementation=implementation)
    variables = modules.variables(module, query_BTD, memory_BSD)
    padding = None if mask is None else padding_mask(jnp.array([5, 3]), 5)
    causal = combine_masks(jnp.tri(num_queries, 5, dtype=bool), padding)
    how = {"mask": padding, "causal": True}
    actual = apply(module, variables, query_BTD, memory_BSD, **how)
    expected = apply(module, variables, query_BTD, memory_BSD, mask=causal)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    full = apply(module, variables, query_BTD, memory_BSD, mask=padding)
    assert not np.allclose(actual, full, atol=1e-3)


@pytest.mark.parametrize("mask", [None, "causal", "padding"])
def test_fused_attention_equals_our_own(mask, monkeypatch):
    query_BTD = normal(2, 5, 16)
    masks = {"causal": causal_mask(5), "padding": padding_mask(jnp.array([5, 3]), 5)}
    own = MultiHeadAttention(num_heads=4)
    variables = modules.variables(own, query_BTD)
    fused = MultiHeadAttention(num_heads=4, attention_implementation="xla")
    calls = []

    def attend(*args, **kwargs):
        calls.append(kwargs["implementation"])
        # A single row, which a padding mask has, is refused by cuDNN.
        assert mask is None or kwargs["mask"].shape[-2:] == (5, 5)
        return fused_attention(*args, **kwargs)

    fused_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)

    @functools.partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def loss_and_gradient(variables, module):
        return (module.apply(variables, query_BTD, mask=masks.get(mask)) ** 2).sum()

    results = [loss_and_gradient(variables, module) for module in (own, fused)]
    assert calls == ["xla"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results
    )


@pytest.mark.parametrize("tokens", [(5, 5), (1, 5), (4, 5), (5, 4), (4, 4)])
@pytest.mark.parametrize("mask", [None, "padding", "causal"])
def test_cudnn_is_given_even_numbers_of_tokens(tokens, mask, monkeypatch):
    """For odd ones JAX raises NotImplementedError when it differentiates."""
    query_BTD, memory_BSD = (normal(2, n, 16, seed=n) for n in tokens)
    lengths = jnp.array([tokens[1], 3])
    padding = padding_mask(lengths, tokens[1]) if mask == "padding" else None
    calls = []

    def attend(query, key, value, *, implementation, **how):
        calls.append(implementation)
        assert query.shape[1] % 2 == key.shape[1] % 2 == value.shape[1] % 2 == 0
        return fused_attention(query, key, value, implementation="xla", **how)

    fused_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_gradient(arguments, module):
        variables, *inputs = arguments
        out = module.apply(variables, *inputs, mask=padding, causal=mask == "causal")
        return (out**2).sum(), out

    both = [
        MultiHeadAttention(num_heads=4, attention_implementation=name)
        for name in ("own", "cudnn")
    ]
    variables = modules.variables(both[0], query_BTD, memory_BSD)
    arguments = (variables, query_BTD, memory_BSD)
    results = [loss_and_gradient(arguments, module) for module in both]
    assert calls == ["cudnn"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results
    )


def test_our_own_attention_steps_in_where_the_weights_are_needed():
    query_BTD = normal(2, 5, 16)
    own, fused = (
        MultiHeadAttention(num_heads=4, dropout_rate=0.5, attention_implementation=name)
        for name in ("own", "xla")
    )
    variables = modules.variables(own, query_BTD)
    for options in (
        {"mutable": ("intermediates",)},
        {"train": True, "rngs": {"dropout": jax.random.key(0)}},
    ):
        results = [apply(x, variables, query_BTD, **options) for x in (own, fused)]
        jax.tree.map(np.testing.assert_array_equal, *results)


def test_multi_head_attention_rejects_an_unknown_implementation():
    module = MultiHeadAttention(num_heads=4, attention_implementation="flash")
    message = "attention_implementation must be 'own', 'cudnn' or 'xla', got 'flash'"
    with pytest.raises(ValueError, match=message):
        modules.shapes(module, 2, 5, 16)


def test_integers_are_refused_and_the_output_has_the_query_s_dtype():
    query, key, value = _qkv()
    with pytest.raises(AssertionError, match="int32"):
        dot_product_attention(*(jnp.ones((2, 3), jnp.int32),) * 3)
    half = query.astype(jnp.bfloat16)
    output = dot_product_attention(half, key.astype(jnp.bfloat16), value)
    assert output.dtype == jnp.bfloat16
