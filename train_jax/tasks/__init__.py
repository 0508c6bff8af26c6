"""Tasks: make batches of examples, and evaluate a model's outputs."""

import dataclasses
from typing import Any

from train_jax.tasks.classification import Classification as Classification
from train_jax.tasks.task import EvalStep as EvalStep
from train_jax.tasks.task import Task as Task
from train_jax.tasks.translation import Translation as Translation

_KINDS = {"classification": Classification, "translation": Translation}


def task_to_json(task: Any) -> dict[str, Any]:
    """Turn a task into JSON values."""
    kinds = {task_class: kind for kind, task_class in _KINDS.items()}
    return {"kind": kinds[type(task)]} | dataclasses.asdict(task)


def task_from_json(description: dict[str, Any]) -> Task:
    """Make the task that `task_to_json` described."""
    fields = dict(description)
    task_class = _KINDS[fields.pop("kind")]
    return task_class(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    )
