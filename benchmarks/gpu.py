"""How fast is a GPU: bfloat16 steps against torch.compile, CIFAR-10 to 94 %?"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator

import jax

from benchmarks import commands
from benchmarks.cases import CASES, Case, cases
from benchmarks.timing import Timing, take_turns
from benchmarks.train_step import flops_of_step, make_programs

# Dense bfloat16 (T4, V100: float16), operations a second, as the makers state them.
_PEAK = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,  # before L4, which is part of its name
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
_RECIPE = (
    *("--config", "configs/resnet18_cifar10.py", "--config.dtype=bfloat16"),
    *("--config.batch_size=512", "--config.optimizer.learning_rate=0.4"),
    *("--config.optimizer.warmup_epochs=3", "--config.num_epochs=30"),
)
_SMALL_RECIPE = (
    *("--config", "configs/vit_digits.py", "--config.num_epochs=2"),
    *("--config.optimizer.warmup_epochs=0", "--config.model.width=16"),
    "--config.model.depth=1",
)


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time steps in bfloat16, then a whole training."""
    kind = jax.devices()[0].device_kind
    peak = next((v for k, v in _PEAK.items() if k in kind), None)
    chosen = cases(small=True) if small else _cases()
    for name, case in chosen.items():
        compiled = {"is_compiled": True, "channels_last": case.is_convolutional}
        variants = {} if small else {"compiled": compiled}
        timings = take_turns(
            f"{name}, batch {case.batch_size}, bfloat16",
            make_programs(case, "bfloat16", variants),
            rounds=rounds,
            images=case.batch_size,
            units=case.num_steps,
        )
        for timing in timings:
            share = peak and flops_of_step(case) / timing.median / peak
            yield dataclasses.replace(timing, peak_share=share)
    yield from _whole_training(small=small)


def _cases() -> dict[str, Case]:
    """List the CPU's cases with batches that fill a GPU, and fused attention."""
    vit, resnet = CASES["ViT-S/16, 224 px"], CASES["ResNet-18, CIFAR-10"]
    fused = vit.fields | {"model.attention_implementation": "cudnn"}
    return {
        "ViT-S/16, 224 px": vit._replace(batch_size=256, num_steps=10),
        "ViT-S/16, 224 px, cuDNN attention": vit._replace(
            fields=fused, batch_size=256, num_steps=10
        ),
        "ResNet-18, CIFAR-10": resnet._replace(batch_size=512, num_steps=20),
    }


def _whole_training(*, small: bool) -> Iterator[Timing]:
    """Time a training from the command to the test accuracy that it has to reach."""
    accuracy, recipe = ("0", _SMALL_RECIPE) if small else ("0.94", _RECIPE)
    with tempfile.TemporaryDirectory() as scratch:
        workdir = pathlib.Path(scratch) / "run"
        command = ("-m", "benchmarks.reach", accuracy, *recipe)
        command = (*command, "--workdir", str(workdir))
        seconds, _ = commands.run(command, pathlib.Path(scratch) / "cache")
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    images = round(epochs[-1]["images_per_second"] * epochs[-1]["seconds"])
    yield Timing(
        f"to {float(accuracy):.0%} of the test split",
        "ours, the whole command",
        [seconds],
        images * len(epochs),
    )
    rates = [epoch["seconds"] for epoch in epochs]
    yield Timing("an epoch of it", "ours", rates, images)
