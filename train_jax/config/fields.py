"""The table of the config: each field's type, default, rule and meaning.

The checks, `--help` and docs/config.md are made from it. Importing it is cheap: the
fields of the models and the arguments of the optimisers, which need JAX, are in
`train_jax.config.signatures`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from train_jax.config.optimizer_fields import GroupConfig, OptimizerConfig
from train_jax.config.options import Option, option, options_of
from train_jax.config.rules import (
    AREA,
    CHANNEL_STDS,
    MEAN,
    POSITIVE,
    STEPS,
    integer,
    number,
    or_none,
)

# Steps are counted in int32.
MOST_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model: its name, and the fields of its module."""

    # The keys of `models.MODELS`.
    name: Literal[
        "vit",
        "vit_ti16",
        "vit_s16",
        "vit_s32",
        "vit_b16",
        "vit_b32",
        "vit_l16",
        "vit_h14",
        "resnet18",
        "resnet34",
        "resnet18_imagenet",
        "resnet34_imagenet",
        "resnet50_imagenet",
        "resnet101_imagenet",
        "resnet152_imagenet",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
        "airbench",
        "transformer",
    ] = option("vit", "which model is trained")
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """The data and their splits."""

    name: str = option(
        "digits", "'digits', 'reverse', 'folder:PATH', or an image set of TFDS"
    )
    train_split: str = option(
        "train[:90%]", "examples to train on: a split, or one slice of it"
    )
    val_split: str | None = option(
        "train[90%:]", "examples to validate on after each epoch; None for none"
    )
    test_split: str = option("test", "examples to test on, once, at the end")
    data_dir: str | None = option(
        None,
        "folder of prepared TFDS sets, or gs://BUCKET/FOLDER; None for "
        "$TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    manual_dir: str | None = option(
        None, "folder with a set's original archives, to prepare it without internet"
    )
    image_size: int | None = option(
        None,
        "side of the square to which images are resized, pixels; None keeps their size",
        or_none(integer(1, 4096)),
    )
    resize: Literal["crop", "pad", "stretch"] = option(
        "crop",
        "how other images become square: the centre cut out, with a black frame, or "
        "stretched",
    )
    split_seed: int = option(
        0, "seed of the order of a folder's pictures", integer(0, 2**31 - 1)
    )
    mean: tuple[float, ...] | Literal["pixel"] | None = option(
        None,
        "mean of the pixels in [0, 1]; None for that of the data set, if known, or "
        "0.5; of a folder that of its training split; 'pixel' for a mean of each pixel "
        "over the training split",
        or_none(MEAN),
    )
    std: tuple[float, ...] | None = option(
        None,
        "standard deviation of the pixels; None as for the mean",
        or_none(CHANNEL_STDS),
    )
    streaming: Literal["auto", True, False] = option(
        "auto",
        "whether images are decoded while the model trains, by Grain, not before it; "
        "'auto' if they don't fit into memory, or crop_area is given",
    )
    num_workers: int | None = option(
        None,
        "processes that decode streamed images; 0 for threads of the trainer, None for "
        "one process for each eight processors",
        or_none(integer(0, 256)),
    )
    allow_overlap: bool = option(
        False, "whether splits may share examples without a warning"
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to the training images."""

    crop_area: tuple[float, float] | None = option(
        None,
        "smallest and largest share of a streamed image that is cut out at random and "
        "resized (random resized crop); None for all of it",
        or_none(AREA),
    )
    crop_padding: int = option(
        0, "pixels around an image before a random crop", integer(0)
    )
    crop_fill: Literal["black", "reflection"] = option(
        "black", "what is around the image"
    )
    flip: Literal["random", "alternating"] | None = option(
        None,
        "mirror images left to right: 'random', each with probability one half, or "
        "'alternating', each in every second epoch",
    )
    rotation: float = option(
        0.0, "largest rotation to either side, degrees", number(0, most=180)
    )
    scaling: float = option(
        0.0,
        "largest change of the size: 0.1 for factors 0.9 to 1.1",
        number(0, most=0.9),
    )
    shear: float = option(
        0.0, "largest shear to either side, degrees", number(0, most=80)
    )
    shift: float = option(
        0.0, "largest shift along each axis, as a share of the side", number(0, most=1)
    )
    brightness: float = option(
        0.0, "largest change of the brightness: 0.4 for 0.6 to 1.4", number(0, most=1)
    )
    contrast: float = option(
        0.0, "largest change of the contrast, likewise", number(0, most=1)
    )
    saturation: float = option(
        0.0, "largest change of the saturation, likewise", number(0, most=1)
    )
    hue: float = option(
        0.0, "largest shift of the hue, whose circle has length 1", number(0, most=0.5)
    )
    trivial_augment: bool = option(
        False, "whether one random operation changes each image (TrivialAugment)"
    )
    erasing_rate: float = option(
        0.0, "share of the images in which a rectangle is erased", number(0, most=1)
    )
    mixup_alpha: float = option(
        0.0, "parameter of MixUp's Beta distribution; 0 for no MixUp", number(0)
    )
    cutmix_alpha: float = option(
        0.0, "parameter of CutMix's Beta distribution; 0 for no CutMix", number(0)
    )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save a checkpoint, and how many to keep."""

    every_epochs: int = option(1, "save every N epochs", integer(1))
    every_steps: int | None = option(
        None, "also save every N steps", or_none(integer(1))
    )
    every_minutes: float | None = option(
        None, "also save every N minutes", or_none(POSITIVE)
    )
    keep: int = option(2, "how many of the newest checkpoints are kept", integer(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Fields that belong to no section: length, batch size, seeds, dtype, testing."""

    model: ModelConfig
    dataset: DatasetConfig
    augment: AugmentConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    batch_size: int = option(128, "examples in a training step", integer(1))
    eval_batch_size: int = option(256, "examples in an evaluation step", integer(1))
    accumulation_steps: int = option(
        1,
        "gradient accumulation: number of parts into which a batch is split, and whose "
        "gradients are averaged; saves memory",
        integer(1),
    )
    num_epochs: int = option(
        10, "passes over the training split", integer(1, MOST_STEPS)
    )
    num_steps: int | None = option(
        None,
        "length of the training in steps; takes the place of num_epochs",
        or_none(integer(1, MOST_STEPS)),
    )
    label_smoothing: float = option(
        0.0,
        "share of the target that is spread over all classes",
        number(0, below=1),
        sweepable=True,
    )
    ema_decay: float | None = option(
        None,
        "decay rate of the exponential moving average (EMA) of the parameters, which "
        "is then evaluated; in step t at most (1 + t) / (10 + t); None for none",
        or_none(number(0, below=1)),
        sweepable=True,
    )
    init_from: str | None = option(
        None,
        "weights to start from: the workdir of a run, a file or folder of weights, or "
        "hf://owner/name[@revision]",
    )
    freeze: Literal["backbone"] | None = option(
        None,
        "'backbone' trains the head alone, on features without dropout and with "
        "BatchNorm's running statistics; None trains everything",
    )
    dtype: Literal["float32", "bfloat16", "auto"] = option(
        "float32",
        "dtype of the computation; parameters stay float32; 'auto' for the faster one "
        "on the device where the run starts",
    )
    seed: int = option(
        0, "seed of all randomness; the first one of num_seeds", integer(0, 2**31 - 1)
    )
    num_seeds: int = option(
        1, "runs with consecutive seeds, trained in one program", integer(1, 1024)
    )
    fsdp: bool = option(False, "whether parameters are sharded over the devices")
    debug_nans: bool = option(
        False, "whether a loss that is not finite is traced to the array it comes from"
    )
    profile_steps: tuple[int, int] | None = option(
        None,
        "between which steps, (first, last), a trace for TensorBoard and Perfetto is "
        "recorded",
        or_none(STEPS),
    )
    test_checkpoint: Literal["last", "best"] = option(
        "last",
        "checkpoint that is tested: the last, or the one with the best validation "
        "accuracy (of several runs: the best mean)",
    )
    test_augmentation: Literal["flip", "flip_shift"] | None = option(
        None,
        "test-time augmentation, reported as test_accuracy_augmented: average the "
        "outputs of each image and its mirror image ('flip'), or of these and both "
        "shifted by a pixel ('flip_shift')",
    )
    # Dotted field → values: a run for each, trained in one program.
    sweep: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    # Name → group, in the order in which they are tried.
    groups: Mapping[str, GroupConfig] = dataclasses.field(default_factory=dict)


# Section → its class, in the order of `Config`.
SECTIONS: dict[str, Any] = {
    field.name: field.type
    for field in dataclasses.fields(Config)
    if dataclasses.is_dataclass(field.type)
}


# Dotted name → row, without the fields of models and the arguments of optimisers.
TABLE: dict[str, Option] = {
    f"{section}.{name}": option
    for section, its_class in SECTIONS.items()
    for name, option in options_of(its_class).items()
} | options_of(Config)
