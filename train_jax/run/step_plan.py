"""Compile a training step ahead of time; read its memory, FLOPs and communication."""

import dataclasses
import functools
import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax import data
from train_jax.config.fields import Config, DatasetConfig
from train_jax.data import ImageSplit, Split
from train_jax.data.split import check_split_name
from train_jax.data.streamed import stream_split
from train_jax.devices.collectives import Collective, find_collectives
from train_jax.devices.flops import count_flops
from train_jax.devices.memory import SHARE, room_for_data
from train_jax.devices.topology import Chip, Topology
from train_jax.run.initial_state import make_initial_state
from train_jax.run.model import make_model
from train_jax.run.optimizer import frozen_params
from train_jax.run.runs import make_runs
from train_jax.run.setup import check_streaming
from train_jax.run.splits import SPLIT_FIELDS, load_dataset
from train_jax.run.task import make_task
from train_jax.run.trainer_setup import make_steps
from train_jax.tasks import Task


class _Known(NamedTuple):
    """A well-known set: examples of each split, side of its images if all are alike."""

    num_examples: dict[str, int]
    side: int | None
    channels: int
    num_classes: int


_MNIST = {"train": 60_000, "test": 10_000}
_CIFAR = {"train": 50_000, "test": 10_000}
_IMAGENET = {"train": 1_281_167, "validation": 50_000, "test": 100_000}
_KNOWN = {
    "mnist": _Known(_MNIST, 28, 1, 10),
    "fashion_mnist": _Known(_MNIST, 28, 1, 10),
    "cifar10": _Known(_CIFAR, 32, 3, 10),
    "cifar100": _Known(_CIFAR, 32, 3, 100),
    "imagenet2012": _Known(_IMAGENET, None, 3, 1000),
}


class Bounds(NamedTuple):
    """The least time of a step, seconds; None where nothing is known of the device.

    Attributes:
        products: for its operations.
        traffic: for reading and writing what is kept, once each.
        exchange: for its collectives.
        step: the largest of these (the roofline).
        mfu: model FLOP utilisation: share of the chip's operations that would be the
            model's in a step of that time.
    """

    products: float | None
    traffic: float | None
    exchange: float | None
    step: float | None
    mfu: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step takes, of each device.

    Attributes:
        memory: what takes memory → bytes; of a step that doesn't fit, without the
            activations and the program.
        needed: bytes at the peak.
        fits: whether the compiler found a place for all of it.
        flops: operations of matrix products and convolutions.
        model_flops: those without recomputation: three times the forward pass's, or
            fewer if some parameters are frozen.
        collectives: the operations that exchange data.
        batch_size: over all devices.
        num_runs: number of runs in one program.
        num_examples: size of the training split.
        steps_per_epoch: number of steps.
    """

    memory: dict[str, int]
    needed: int
    fits: bool
    flops: float
    model_flops: float
    collectives: list[Collective]
    batch_size: int
    num_runs: int
    num_examples: int
    steps_per_epoch: int

    @property
    def examples_per_step(self) -> int:
        """Number of examples in a step of all runs."""
        return self.batch_size * self.num_runs

    @property
    def traffic(self) -> int:
        """Bytes that are moved at the least: what is kept, read and written once."""
        kept = ("parameters", "optimiser", "averages, statistics")
        return 2 * sum(self.memory[name] for name in kept)

    def bounds(self, chip: Chip | None) -> Bounds:
        """Compute how long a step takes at least on a chip."""
        if chip is None or not self.fits:
            return Bounds(None, None, None, None, None)
        products = self.flops / chip.flops
        traffic = self.traffic / chip.bandwidth
        exchange = sum(x.sent for x in self.collectives) / chip.link_bandwidth
        step = max(products, traffic, exchange)
        mfu = self.model_flops / chip.flops / step
        return Bounds(products, traffic, exchange, step, mfu)


def make_plan(config: Config, topology: Topology) -> Plan:
    """Compile the training step that a config asks for, and read what it takes.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    train = stand_in_examples(
        config.dataset,
        crops=config.augment.crop_area is not None,
        room=SHARE * topology.chip.memory if topology.chip else math.inf,
    )
    task = make_task(config.dataset, config.augment, train)
    model = make_model(config, task, devices=topology.devices)
    runs = make_runs(config, model, devices=topology.devices)
    check_streaming(config, runs, is_streamed=train.is_streamed)
    state, _ = make_initial_state(config, model, task, runs)
    steps = make_steps(config, model, task, train, runs)
    num_devices = len(topology.devices)
    traced = jax.jit(steps.step).trace(state, *steps.inputs)
    memory = {
        "parameters": _bytes(state.params),
        "optimiser": _bytes(state.opt_state),
        "averages, statistics": _bytes((state.ema, state.batch_stats)),
        "training images": _bytes(steps.inputs),
    }
    flops = count_flops(traced.jaxpr)
    model_flops = _model_flops(model, task, config, len(runs))
    if frozen_params(config):
        model_flops = min(flops, model_flops)
    common: dict[str, Any] = {
        "flops": flops / num_devices,
        "model_flops": model_flops / num_devices,
        "batch_size": config.batch_size,
        "num_runs": len(runs),
        "num_examples": len(train),
        "steps_per_epoch": steps.per_epoch,
    }
    try:
        compiled = steps.lower(state).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _parse_needed(str(error))
        if needed is None:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"the step cannot be compiled: {reason}") from error
        return Plan(memory, needed, False, collectives=[], **common)
    analysis = compiled.memory_analysis()
    memory["activations"] = analysis.temp_size_in_bytes
    memory["program"] = analysis.generated_code_size_in_bytes
    collectives = find_collectives(compiled.as_text())
    needed = sum(memory.values())
    return Plan(memory, needed, True, collectives=collectives, **common)


@functools.lru_cache(maxsize=1)  # the same for each batch size that is tried
def stand_in_examples(
    dataset: DatasetConfig, *, crops: bool = False, room: float = math.inf
) -> Split:
    """Make examples of the right shapes; the data of well-known sets aren't read.

    Args:
        dataset: names them.
        crops: see `load_dataset`.
        room: how many bytes of images a device can hold.

    Raises:
        ValueError: see `load_dataset`, and if the size of the images is not known.
    """
    if dataset.name not in _KNOWN:
        # They are read on this machine, which may have less memory than the device.
        room = min(room, room_for_data())
        return load_dataset(dataset, crops=crops, room=room)[0]
    known = _KNOWN[dataset.name]
    side = dataset.image_size or known.side
    if side is None:
        raise ValueError(
            f"config.dataset.image_size must be given for dataset {dataset.name!r}, "
            "whose images are of many sizes"
        )
    shape, sizes = (side, side, known.channels), known.num_examples
    cuts = [cut for name in SPLIT_FIELDS if (cut := getattr(dataset, name)) is not None]
    bases = {data.split_name(cut) for cut in cuts}
    for base in bases:
        check_split_name(base, sizes, dataset.name)
    whole = range(sizes[data.split_name(dataset.train_split)])
    count = len(whole[data.absolute_slice(dataset.train_split, len(whole))])
    names = tuple(map(str, range(known.num_classes)))
    streaming = dataset.streaming
    if streaming == "auto":
        num_values = math.prod(shape)
        if known.side not in (None, side):  # see `tfds_stream.decoded_size`
            num_values += known.side**2 * known.channels
        total = sum(sizes[base] for base in bases) * num_values
        streaming = crops or known.side is None or total > room
    if streaming:
        return stream_split(
            _Blank(shape),
            count,
            channels=known.channels,
            image_size=side,
            class_names=names,
            resize=dataset.resize,
        )
    # One pixel in memory.
    images = np.broadcast_to(np.uint8(0), (count, *shape))
    return ImageSplit(images, np.zeros(count, np.int32), names)


@dataclasses.dataclass(frozen=True)
class _Blank:
    """Black images, see `Source`."""

    shape: tuple[int, int, int]

    def read_image(self, place: int) -> np.ndarray:
        return np.zeros(self.shape, np.uint8)

    def read_label(self, place: int) -> int:
        return 0


def _model_flops(model: nn.Module, task: Task, config: Config, num_runs: int) -> int:
    """Count the operations of a step without recomputation."""
    inputs = jax.eval_shape(task.inputs)
    batch = [
        jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype) for x in inputs
    ]
    variables = jax.eval_shape(model.init, jax.random.key(0), *batch)
    forward = jax.jit(model.apply).trace(variables, *batch)
    return 3 * num_runs * count_flops(forward.jaxpr)


def _bytes(tree: Any) -> int:
    """Compute what each device holds of described arrays, bytes."""

    def size(x: Any) -> int:
        dtype = x.dtype
        item = 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
        return math.prod(x.sharding.shard_shape(x.shape)) * item

    return sum(map(size, jax.tree.leaves(tree)))


def _parse_needed(message: str) -> int | None:
    """Read in an error of the TPU's compiler how much memory a program needs, bytes."""
    match = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])\b", message)
    if match is None:
        return None
    return int(float(match[1]) * 2 ** (10 * (" KMGT".index(match[2]))))
