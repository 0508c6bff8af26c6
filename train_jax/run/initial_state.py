"""Draw the training state that the runs start from."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax

from train_jax.config.fields import Config
from train_jax.devices import compiler, sharding
from train_jax.learning.state import TrainState
from train_jax.run.model import init_variables
from train_jax.run.optimizer import build_optimizer, check_groups, param_groups
from train_jax.run.runs import Runs
from train_jax.tasks import Task


def make_initial_state(
    config: Config,
    model: nn.Module,
    task: Task,
    runs: Runs,
    *,
    pretrained: Mapping[str, Any] | None = None,
) -> tuple[TrainState, Callable[[], TrainState]]:
    """Describe the training state of all runs, and make the function that draws it.

    Args:
        config: names what belongs to the state.
        model: the module.
        task: what it is trained on.
        runs: the runs that are trained in one program.
        pretrained: path → array, in place of drawn variables; see `fit_pretrained`.

    Returns:
        The abstract state, with shardings, and a function without arguments.
    """
    # The structure of the optimiser's state does not depend on the schedule's length.
    make_tx = functools.partial(
        build_optimizer,
        config.optimizer,
        param_groups(config),
        steps_per_epoch=0,
        total_steps=1,
    )

    def init(key: jax.Array, swept: Mapping[str, Any], pretrained: Any) -> TrainState:
        variables = init_variables(model, key, task.inputs())
        flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
        variables = flax.traverse_util.unflatten_dict({**flat, **pretrained}, sep="/")
        check_groups(param_groups(config), variables["params"])
        return TrainState.create(
            variables,
            make_tx(swept=swept),
            label_smoothing=swept.get("label_smoothing", config.label_smoothing),
            ema_decay=swept.get("ema_decay", config.ema_decay),
        )

    init_all = runs.map(init, in_axes=(0, 0, None))
    rest = (runs.swept_values(), dict(pretrained or {}))
    abstract_state = sharding.shard_state(
        jax.eval_shape(init_all, runs.abstract_keys()["init"], *rest),
        runs.mesh,
        num_runs=len(runs),
        fsdp=config.fsdp,
    )
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
    jitted = compiler.fast_jit(init_all, out_shardings=shardings)
    return abstract_state, lambda: jitted(runs.keys["init"], *rest)
