"""Load a trained model: from the folder of a run, or from weights of others."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

import resnet_jax.weights
import vit_jax.weights
from train_jax import tasks
from train_jax.config.config import resolve
from train_jax.config.fields import DatasetConfig
from train_jax.config.rules import CHANNEL_MEANS, CHANNEL_STDS
from train_jax.data import ImageSplit, Split, split_name
from train_jax.data.resize import Resize
from train_jax.data.split import first_change
from train_jax.devices import policy
from train_jax.output import checkpoint as checkpoints
from train_jax.output import workdir as wd
from train_jax.run.initial_state import make_initial_state
from train_jax.run.model import make_model
from train_jax.run.runs import make_runs
from train_jax.run.splits import SPLIT_FIELDS, load_named_splits
from train_jax.storage.store import Path, any_path
from train_jax.tasks import Classification, Task
from weight_files import Pretrained, open_source
from weight_files.pretrained import Resampling


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model, and what is needed to use it.

    Attributes:
        task: the task it was trained on.
        model: the module.
        variables: the variables to evaluate with.
        name: of the model, for messages.
        dataset: the data of its training, if they are known.
        step: number of training steps, if it is known.
        files_checksums: name of each split it was trained with → its
            `ImageSplit.files_checksum`.
        resize: how images of other proportions are resized.
        crop_fraction: see `weight_files.Pretrained`.
        resampling: likewise.
    """

    task: Task
    model: nn.Module
    variables: Any
    name: str
    dataset: DatasetConfig | None = None
    step: int | None = None
    files_checksums: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    resize: Resize = "crop"
    crop_fraction: float = 1.0
    resampling: Resampling = "bilinear"

    def load_test(self) -> Split:
        """Load the test split of the training's data set.

        Raises:
            ValueError: if that set is not known.
        """
        if self.dataset is None:
            raise ValueError("pictures must be named, as weights have no test images")
        return self.load_split(self.dataset, self.dataset.test_split)

    def load_split(self, dataset: DatasetConfig, cut: str) -> Split:
        """Load a split of the training's data set; warn if its pictures have changed.

        Args:
            dataset: that of the training, wherever it is now.
            cut: the split, or a slice of it.

        Raises:
            ValueError: if the set has other classes or images than in the training.
        """
        (split,) = load_named_splits(dataset, cut)
        if isinstance(split, ImageSplit) and isinstance(self.task, Classification):
            change = first_change(self.task.class_names, split.class_names)
            shapes = self.task.image_shape, split.image_BHWC.shape[1:]
            if change := change or first_change(*shapes):
                raise ValueError(
                    f"dataset {dataset.name!r} is not that of the training, which had "
                    f"{change}"
                )
        now = split.files_checksum
        if now != self.files_checksums.get(split_name(cut), now):
            print(
                f"warning: the pictures of {dataset.name!r} have changed since the "
                f"training; some of {cut!r} may have been trained on",
                file=sys.stderr,
            )
        return split

    def to_pretrained(self) -> Pretrained:
        """Describe the model for other libraries.

        Raises:
            ValueError: if it does not classify images.
        """
        task = require_images(self)
        return Pretrained(
            self.model,
            self.variables,
            task.image_shape,
            task.mean,
            task.std,
            task.class_names,
            self.crop_fraction,
            self.resampling,
            "stretch" if self.resize == "stretch" else "crop",
        )


def require_images(trained: TrainedModel) -> Classification:
    """Return the task of a model that classifies images; ValueError for others."""
    if not isinstance(trained.task, Classification):
        raise ValueError(f"the model must classify images, {trained.name!r} does not")
    return trained.task


def load_model(
    workdir: Path | str, *, run: int = 0, checkpoint: str | int = "last"
) -> TrainedModel:
    """Restore a trained model from the folder of its run.

    Args:
        workdir: the run's folder; of it, only `checkpoints/` is used.
        run: which one, from 0, if several were trained in one program.
        checkpoint: "last", "best" (by validation) or a step.

    Returns:
        The model with its variables, which are on one device.

    Raises:
        ValueError: if the folder holds no such checkpoint that is complete, or not so
            many runs.
    """
    workdir = any_path(str(workdir), "workdir")
    directory = workdir / wd.CHECKPOINTS
    with wd.naming_workdir(workdir, name="workdir"):
        step = checkpoints.find(directory, str(checkpoint))
        is_there = step is not None or workdir.exists()
    if step is None:
        problem = "holds no checkpoint" if is_there else "does not exist"
        raise ValueError(f"workdir {str(workdir)!r} {problem}")
    try:
        metadata = checkpoints.read_metadata(directory, step)
    except OSError as error:
        raise ValueError(f"checkpoint {step} cannot be read: {error}") from error
    fields = metadata["config"]
    if "model.attention_implementation" in fields:
        # That of the training may not exist on this device; the weights fit any.
        fields["model.attention_implementation"] = "own"
    config, task = resolve(fields), tasks.task_from_json(metadata["task"])
    runs = make_runs(config, devices=jax.local_devices()[:1])
    if not 0 <= run < len(runs):
        raise ValueError(f"run must be in [0, {len(runs) - 1}], got {run}")
    model = make_model(config, task)
    abstract_state, _ = make_initial_state(config, model, task, runs)
    of_all_runs = checkpoints.restore_variables(directory, step, abstract_state)
    variables = runs.select(of_all_runs, run)
    cuts = [getattr(config.dataset, field) for field in SPLIT_FIELDS]
    checksums = metadata.get("files_checksums", ())
    files_checksums = {
        split_name(cut): checksum
        for cut, checksum in zip(cuts, checksums, strict=False)
        if cut is not None
    }
    return TrainedModel(
        task,
        model,
        variables,
        config.model.name,
        dataset=config.dataset,
        step=step,
        files_checksums=files_checksums,
        resize=config.dataset.resize,
    )


def read_weights(source: str, **fields: Any) -> Pretrained:
    """Load a ViT or a ResNet from weights, see `vit_jax.weights.load`."""
    opened = open_source(source)
    if not resnet_jax.weights.is_resnet(opened):
        return vit_jax.weights.load(opened, **fields)
    if "num_heads" in fields:
        raise ValueError("--num_heads is for ViTs alone, a ResNet has no heads")
    return resnet_jax.weights.load(opened, **fields)


def load_weights(
    source: str,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    class_names: tuple[str, ...] | None = None,
    **fields: Any,
) -> TrainedModel:
    """Load a model from weights that others trained.

    Args:
        source: a file, a folder or "hf://owner/name[@revision]".
        mean: of each channel, of pixels in [0, 1], in place of the source's.
        std: likewise.
        class_names: likewise.
        **fields: `num_heads`, `image_size` or others that the source does not tell.

    Raises:
        ValueError: if the weights can't be read, have no head, or if nothing tells the
            mean and standard deviation.
    """
    loaded = read_weights(source, **fields)
    num_classes: int | None = loaded.model.num_classes  # type: ignore (of both)
    if num_classes is None:
        raise ValueError(f"weights {source!r} have no classification head")
    channels = loaded.image_shape[2]
    for flag, given, known in (
        ("--mean", mean, loaded.mean),
        ("--std", std, loaded.std),
    ):
        if given is None and known is None:
            raise ValueError(
                f"{flag} must be given, as weights {source!r} do not contain it"
            )
        if given is not None and len(given) != channels:
            raise ValueError(f"{flag} must have {channels} values, got {given}")
        rule = CHANNEL_STDS if flag == "--std" else CHANNEL_MEANS
        if given is not None and not rule.passes(given):
            raise ValueError(f"{flag} must be {rule.allowed}, got {given}")
    names = class_names or loaded.class_names or tuple(map(str, range(num_classes)))
    if len(names) != num_classes:
        raise ValueError(
            f"weights {source!r} have {num_classes} classes, but {len(names)} names"
        )
    task = Classification(
        loaded.image_shape, names, mean or loaded.mean or (), std or loaded.std or ()
    )
    return TrainedModel(
        task,
        policy.adapt_model(loaded.model),
        loaded.variables,
        type(loaded.model).__name__,
        resize=loaded.resize,
        crop_fraction=loaded.crop_fraction,
        resampling=loaded.resampling,
    )
