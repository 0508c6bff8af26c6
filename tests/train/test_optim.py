"""Schedules and optimisers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train_jax.learning import aliases, muon, optim
from vit_jax import ViT

CONSTANT = optax.constant_schedule(1.0)


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [
        ("constant", 1.0, 1.0),
        ("cosine", 0.5, 0.0),
        ("linear", 0.5, 0.0),
        ("rsqrt", 6**-0.5, 11**-0.5),
        ("steps", 0.1, 0.01),
    ],
)
def test_schedule_warms_up_and_decays(name, middle, end):
    schedule = optim.make_schedule(name, total_steps=110, warmup_steps=10)
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (60, middle), (110, end)):
        np.testing.assert_allclose(schedule(step), share, atol=1e-6)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_a_cooldown_falls_to_0_at_the_end(name):
    plain, cooled = (
        optim.make_schedule(name, total_steps=100, warmup_steps=10, cooldown_steps=n)
        for n in (0, 20)
    )
    for step, factor in ((0, 1), (5, 1), (80, 1), (85, 0.75), (95, 0.25), (100, 0)):
        np.testing.assert_allclose(cooled(step), factor * plain(step), atol=1e-6)


def test_schedule_without_warmup_starts_at_the_peak():
    schedule = optim.make_schedule("cosine", total_steps=7)
    np.testing.assert_allclose(schedule(0), 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "step", "total_steps": 5},
            "constant, cosine, linear, rsqrt, steps, got step",
        ),
        (
            {"name": "cosine", "total_steps": 5, "warmup_steps": 5},
            "shorter than the training, got 5 of 5 steps",
        ),
        (
            {"name": "steps", "total_steps": 8, "warmup_steps": 5},
            "milestones must come after the warm-up",
        ),
    ],
)
def test_schedule_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.make_schedule(**arguments)


def test_milestones_of_the_same_step_count_both():
    schedule = optim.make_schedule("steps", total_steps=3)  # after 1.5 and 2.25 steps
    np.testing.assert_allclose(
        [schedule(step) for step in range(4)], [1, 1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("sam", {}, "adamw, adam, sgd, muon, .*, yogi, got sam"),
        ("sgd", {"weight_decay_mask": "biases"}, "kernels, all, got biases"),
    ],
)
def test_optimizer_refuses(name, fields, message):
    with pytest.raises(ValueError, match=message):
        optim.make_update_rule(name, CONSTANT, learning_rate=1.0, **fields)


def test_kernel_mask_marks_the_kernels_and_nothing_else():
    model = ViT(10, patch_size=4, width=8, depth=1, num_heads=2)
    image_BHWC = jnp.zeros((1, 8, 8, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), image_BHWC)
    mask = muon.kernel_mask(variables["params"])
    marked = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, value in jax.tree_util.tree_leaves_with_path(mask)
        if value
    }
    assert {"embedding/kernel", "head/kernel"} < marked
    assert all(path.endswith("/kernel") for path in marked)
    assert len(marked) == 8  # embedding, 4 of attention, 2 of the MLP, head


PARAMS = {"layer": {"kernel": jnp.full((1, 2), 2.0), "bias": jnp.full((2,), 3.0)}}
GRADS = {"layer": {"kernel": jnp.full((1, 2), 0.5), "bias": jnp.full((2,), -0.25)}}


def _update(name, steps=3, clip_norm=None, **fields):
    rule = optim.make_update_rule(name, CONSTANT, learning_rate=0.1, **fields)
    tx = optim.make_optimizer(rule, clip_norm=clip_norm)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_sgd_is_nesterov_momentum_with_an_l2_penalty():
    weight, buffer = 2.0, 0.0
    for _ in range(3):
        gradient = 0.5 + 0.01 * weight
        buffer = 0.9 * buffer + gradient
        weight -= 0.1 * (gradient + 0.9 * buffer)
    params = _update("sgd", momentum=0.9, weight_decay=0.01)
    np.testing.assert_allclose(params["layer"]["kernel"], weight, rtol=1e-6)


def test_adamw_is_that_of_optax():
    nesterov = {"nesterov": True}
    expected = optax.adamw(0.1, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, **nesterov)
    params, state = PARAMS, expected.init(PARAMS)
    for _ in range(3):
        updates, state = expected.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    fields = {"b1": 0.8, "b2": 0.9, "eps": 1e-6, "weight_decay": 0.3, **nesterov}
    ours = _update("adamw", weight_decay_mask="all", **fields)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, params)


@pytest.mark.parametrize("name", aliases.NAMES)
def test_an_optimiser_of_optax_is_that_of_optax(name):
    function = getattr(optax, name)
    parameters = inspect.signature(function).parameters
    decay = {
        # It is scaled by the learning rate, which that of optax's adafactor is not.
        "weight_decay_rate": 0.3 * 0.1,
        "weight_decay": 0.3,
    }
    decay = {key: value for key, value in decay.items() if key in parameters}
    expected = function(learning_rate=0.1, **decay)
    if not decay:
        expected = optax.chain(optax.add_decayed_weights(0.3), expected)
    params, state = PARAMS, expected.init(PARAMS)
    for _ in range(3):
        updates, state = expected.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    ours = _update(name, weight_decay=0.3, weight_decay_mask="all")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), ours, params)


def test_an_optimiser_of_optax_has_its_own_arguments():
    arguments = {
        name: list(inspect.signature(optim.OPTIMIZERS[name]).parameters)
        for name in ("lion", "lamb", "adafactor")
    }
    assert arguments == {
        "lion": ["b1", "b2"],
        "lamb": ["b1", "b2", "eps", "eps_root"],
        "adafactor": [
            *("min_dim_size_to_factor", "decay_rate", "decay_offset"),
            *("multiply_by_parameter_scale", "clipping_threshold", "momentum"),
            *("eps", "factored"),
        ],
    }
    weights = _update("lion", b1=0.0, b2=0.0), _update("lion", b1=1.0, b2=0.0)
    assert not np.allclose(*(w["layer"]["kernel"] for w in weights))


def test_a_number_of_optax_is_known_by_any_name_of_its_type():
    kind = inspect.Parameter.KEYWORD_ONLY
    for annotation in ("jax.typing.ArrayLike | None", float | None, "Any"):
        parameter = inspect.Parameter(
            "momentum", kind, default=None, annotation=annotation
        )
        expected = None if annotation == "Any" else float | None
        assert aliases._type_of(parameter) == expected


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_weight_decay_spares_the_bias(name):
    plain, decayed = _update(name), _update(name, weight_decay=0.1)
    everywhere = _update(name, weight_decay=0.1, weight_decay_mask="all")
    np.testing.assert_array_equal(plain["layer"]["bias"], decayed["layer"]["bias"])
    if name in ("adadelta", "lamb"):
        return  # The gradients are constant: these scale their size away.
    for part, changed in (("kernel", decayed), ("bias", everywhere)):
        assert not np.array_equal(plain["layer"][part], changed["layer"][part])


def test_clip_norm_bounds_the_gradient():
    clipped = _update("sgd", steps=1, momentum=0.0, clip_norm=0.01)
    moved = jax.tree.map(jnp.subtract, PARAMS, clipped)
    np.testing.assert_allclose(optax.tree.norm(moved), 0.1 * 0.01, rtol=1e-3)
