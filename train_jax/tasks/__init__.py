"""What a run is about: how examples become batches, and how answers are judged."""

from train_jax.tasks.classification import Classification as Classification
from train_jax.tasks.task import EvalStep as EvalStep
from train_jax.tasks.task import Task as Task
from train_jax.tasks.translation import Translation as Translation
