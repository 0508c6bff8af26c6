"""The blocks and the ResNet agree with PyTorch: gradients, statistics, evaluation."""

import functools

import flax.linen as nn
import jax
import pytest

import resnet_jax
from resnet_jax import ResNet
from tests import convert, parity

OUTPUT_ATOL = 1e-5
GRADIENT_ATOL = 1e-4


@pytest.mark.parametrize("source, name, case", parity.sources(parity.RESNET_BLOCK))
def test_residual_block_matches_torch(source, name, case):
    block = getattr(resnet_jax, case["block"])
    module = block(case["features"], stride=case["stride"])
    _check(module, parity.read(source, name), convert.resnet_block)


@pytest.mark.parametrize(
    "source, name, case", parity.sources(parity.RESNET, parity.RESNET_LIVE)
)
def test_resnet_matches_torch(source, name, case):
    fields = {key: value for key, value in case.items() if key != "image_shape"}
    fields["block"] = getattr(resnet_jax, case["block"])
    model = ResNet(**fields)
    _check(model, parity.read(source, name), functools.partial(convert.resnet, model))


def _check(module: nn.Module, record: parity.Record, convert_state) -> None:
    """Compare evaluation, then output, gradients and statistics of a training step."""
    params, batch_stats = convert_state(parity.part(record, "state"))
    image_BHWC = record["input/image"]

    @jax.jit
    def evaluate(params, batch_stats, image_BHWC):
        variables = {"params": params, "batch_stats": batch_stats}
        return module.apply(variables, image_BHWC)

    def train(params, image_BHWC):
        variables = {"params": params, "batch_stats": batch_stats}
        out, updated = module.apply(
            variables, image_BHWC, train=True, mutable=["batch_stats"]
        )
        return out, updated["batch_stats"]

    with jax.default_matmul_precision("highest"):
        out = evaluate(params, batch_stats, image_BHWC)
    parity.assert_close(out, record["output/eval"], atol=OUTPUT_ATOL)

    out, batch_stats_after, gradients = parity.value_and_gradients(
        train, record, params, image_BHWC
    )
    parity.assert_close(out, record["output/out"], atol=OUTPUT_ATOL)
    grad_params, _ = convert_state(parity.part(record, "grad"))
    expected = (grad_params, record["grad_input/image"])
    parity.assert_close(gradients, expected, atol=GRADIENT_ATOL)
    expected = convert_state(_state_after(record))[1]
    parity.assert_close(batch_stats_after, expected, atol=OUTPUT_ATOL)


def _state_after(record: parity.Record) -> parity.Record:
    """Convert what PyTorch's running statistics are after the step.

    Its momentum 0.1 is the share of the new batch, Flax's 0.9 that of the old
    average: the same. But its running variance takes in the unbiased variance of the
    batch, divided by n - 1, and Flax's the one divided by n, n = B·H·W being the
    number of values in a channel, which differs from layer to layer.
    """
    state = parity.part(record, "state")
    after = parity.part(record, "state_after")
    for layer, n in parity.part(record, "count").items():
        name = f"{layer}.running_var"
        old = 0.9 * state[name]
        after[name] = old + (after[name] - old) * ((n - 1) / n)
    return after
