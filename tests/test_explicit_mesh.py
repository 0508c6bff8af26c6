"""ViT and Transformer work on a mesh with explicit axes, `jax.make_mesh`'s default.

Gradients of convolutions and `nn.Embed` do not: JAX asks for their output sharding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests import modules
from tests.modules import normal
from vit_jax import Transformer, ViT

_vit = ViT(3, patch_size=4, width=16, depth=1, num_heads=2)
IMAGE, TOKENS = normal(4, 12, 12, 3), normal(4, 5, 16)
CASES = {
    "vit": (_vit.clone(num_registers=2, dropout_rate=0.1), (IMAGE,)),
    "vit_sequence": (_vit.clone(pool="sequence"), (IMAGE,)),
    "vit_map": (_vit.clone(pool="map", position_embedding="rope"), (IMAGE,)),
    "transformer": (
        Transformer(num_heads=2, mlp_dim=8, encoder_depth=1, decoder_depth=1),
        (TOKENS, TOKENS),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_on_an_explicit_mesh(name):
    model, inputs = CASES[name]
    variables = modules.variables(model, *inputs)

    def loss(variables, *inputs):
        how = {"train": True, "rngs": {"dropout": jax.random.key(0)}, "mutable": True}
        output, _ = model.apply(variables, *inputs, **how)
        return jnp.square(output).sum(), output

    compute = jax.jit(jax.grad(loss, has_aux=True))
    expected_gradient, expected = compute(variables, *inputs)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        layout = NamedSharding(mesh, PartitionSpec("data"))
        sharded = [jax.device_put(x, layout) for x in inputs]
        gradient, output = compute(variables, *sharded)
    assert output.sharding.spec[0] == "data"
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3),
        gradient["params"],
        expected_gradient["params"],
    )
