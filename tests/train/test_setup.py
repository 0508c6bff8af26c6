"""Errors and warnings while a run is set up."""

import functools
import threading
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
import vit_jax
from tests.train.tiny import make_tiny, tiny_config, train_tiny
from train_jax import export
from train_jax.config.config import to_json
from train_jax.devices import compiler, policy, processes, processor
from train_jax.evaluate import evaluate
from train_jax.inference.classifier import Classifier
from train_jax.output import workdir as wd
from train_jax.run import pixels
from train_jax.run.dtype import choose_dtype
from train_jax.run.setup import set_up
from train_jax.run.splits import load_dataset
from train_jax.run.trained_model import TrainedModel, load_model
from vit_jax import bfloat16

FIELD = "config.dataset."
MEANT = "if that is meant, say so by config.dataset.allow_overlap=True\n"


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"val_split": "train[320:]"}, []),
        (
            {"val_split": "train[319:]"},
            ["train_split 'train[:320]' and {}val_split 'train[319:]' share 1 exam"],
        ),
        (
            {"test_split": "train[:10%]"},
            ["train_split 'train[:320]' and {}test_split 'train[:10%]' share 144 exam"],
        ),
        (
            {"val_split": "test", "test_split": "test[300:]"},
            ["val_split 'test' and {}test_split 'test[300:]' share 60 examples"],
        ),
        ({"val_split": "test", "test_split": "test", "allow_overlap": True}, []),
    ],
)
def test_splits_with_examples_in_common_are_told(capsys, changes, warnings):
    fields = {f"dataset.{name}": value for name, value in changes.items()}
    load_dataset(tiny_config(fields).dataset)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert len(lines) == len(warnings)
    for line, warning in zip(lines, warnings, strict=True):
        assert line.startswith(f"warning: {FIELD}{warning.format(FIELD)}")
        assert line.endswith(f"; {MEANT}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 1, "optimizer.warmup_epochs": 1}, "shorter than the training"),
        ({"model.num_heads": 3}, "width must be divisible by num_heads"),
        ({"model.dropout_rate": 1.0}, r"dropout_rate must be a number in"),
        ({"batch_size": 60}, "config.batch_size must be divisible by 8"),
        ({"dataset.name": "reverse"}, "config.model.name must be one of transformer"),
        ({"dataset.test_split": "test["}, "split 'test.' is not understood"),
    ],
)
def test_what_the_config_alone_tells_is_said_before_the_data_are_read(
    monkeypatch, changes, message
):
    monkeypatch.setattr("train_jax.data.load_splits", None)  # fails if it is called
    with pytest.raises(ValueError, match=message):
        set_up(tiny_config(changes))


def test_what_cudnn_does_not_support_is_said_in_a_line(monkeypatch):
    def refuse_to_trace(*_, **__):
        raise NotImplementedError("The head dim must be <= 128 and a multiple of 8.")

    monkeypatch.setattr("train_jax.run.model.init_variables", refuse_to_trace)
    with pytest.raises(ValueError, match=r"config\.model: The head dim must be"):
        set_up(tiny_config())


def test_steps_run_in_a_loop_unless_xla_convolves_on_a_cpu():
    convolve = resnet_jax.conv_general_dilated
    in_a_loop = functools.partial(policy.runs_steps_in_a_loop, platform="cpu")
    assert not in_a_loop(resnet_jax.ResNet18(10))
    assert in_a_loop(resnet_jax.ResNet18(10, conv_general_dilated=convolve))
    assert in_a_loop(vit_jax.ViT_S16(10))
    stem = vit_jax.ViT(10, patch_size=4, width=8, depth=1, num_heads=2, stem="conv")
    assert not in_a_loop(stem)
    assert policy.runs_steps_in_a_loop(stem, platform="tpu")


def test_a_step_is_compiled_as_its_products_are_fast():
    convolve = resnet_jax.conv_general_dilated
    jit = functools.partial(policy.jit_of_model, platform="cpu")
    stem = {"patch_size": 4, "width": 8, "depth": 1, "num_heads": 2, "stem": "conv"}
    stem = vit_jax.ViT(10, conv_general_dilated=convolve, **stem)
    resnet = resnet_jax.ResNet18(10, conv_general_dilated=convolve)
    assert jit(resnet) is compiler.convolution_jit
    assert jit(resnet_jax.ResNet18(10)) is jit(stem) is jax.jit
    assert jit(vit_jax.ViT_S16(10)) is compiler.fast_jit
    assert policy.jit_of_model(resnet, platform="gpu") is jax.jit


def test_models_are_evaluated_with_that_compilation(monkeypatch):
    compiled = []

    def jit_of_model(model, *, platform):
        def jit(function, **how):
            compiled.append((model, platform))
            return jax.jit(function, **how)

        return jit

    monkeypatch.setattr(policy, "jit_of_model", jit_of_model)
    parts = make_tiny(devices=jax.devices()[:1])
    variables = parts.runs.select(parts.init_state().eval_variables, 0)
    trained = TrainedModel(parts.task, parts.model, variables, "vit")
    assert compiled == [(parts.model, "cpu")]  # for the evaluator
    evaluate(trained, parts.val)
    Classifier(trained)
    assert compiled == [(parts.model, "cpu")] * 3


def test_a_mean_of_each_pixel_is_that_of_the_training_split(tmp_path, capsys):
    run = tmp_path / "run"
    changes = {"dataset.mean": "pixel", "dataset.std": (0.25,), "num_steps": 1}
    summary = train_tiny(run, changes)
    parts = make_tiny(changes)
    mean_HWC = parts.train.image_BHWC.mean(axis=0) / 255
    assert mean_HWC.std() > 0.1
    np.testing.assert_allclose(parts.task.mean, mean_HWC.ravel(), atol=1e-6)
    trained = load_model(run)
    assert trained.task == parts.task
    test = trained.load_test()
    image_BHWC = (test.image_BHWC / 255 - mean_HWC) / 0.25
    classify = jax.jit(trained.model.apply)
    logits_BY = classify(trained.variables, image_BHWC.astype(np.float32))
    hits = np.asarray(logits_BY).argmax(axis=1) == test.label_B
    np.testing.assert_allclose(summary["test_accuracy"], hits.mean())
    train_tiny(tmp_path / "next", changes | {"init_from": str(run)})
    assert export.main(["--workdir", str(run), "--format", "safetensors"]) == 2
    assert "a mean of each channel alone" in capsys.readouterr().err
    streamed = types.SimpleNamespace(is_streamed=True)
    with pytest.raises(ValueError, match="are streamed, got 'pixel'"):
        pixels.measure_pixels(streamed)  # type: ignore


def test_training_starts_when_the_slowest_process_has_compiled(
    tmp_path, monkeypatch, capsys
):
    """All that processes exchange is in the main thread, so that it has an order."""

    def of_a_slower_process(*values):
        assert threading.current_thread() is threading.main_thread()
        is_of_compiling = len(values) == 1 and isinstance(values[0], float)
        return [12.34] if is_of_compiling else list(values)

    monkeypatch.setattr(processes, "max_over_processes", of_a_slower_process)
    train_tiny(tmp_path, {"num_steps": 1})
    assert "\ncompiled in 12.3 s\n" in capsys.readouterr().out


@pytest.fixture
def single_cpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    yield
    processor.multiplies_bfloat16.cache_clear()


def _bfloat16(monkeypatch, flags: str, make: Any = vit_jax.ViT_S16) -> Any:
    processor.multiplies_bfloat16.cache_clear()
    monkeypatch.setattr(processor, "facts", lambda: f"x86_64\nflags : sse {flags}")
    model = make(10, dtype=jnp.bfloat16)
    return policy.adapt_model(model, devices=jax.devices()[:1])


@pytest.mark.usefixtures("single_cpu")
@pytest.mark.parametrize("flags", ["avx512_bf16 fma", "amx_tile amx_bf16"])
def test_a_processor_with_bfloat16_rounds_the_factors_of_products(monkeypatch, flags):
    model = _bfloat16(monkeypatch, flags)
    assert model.dot_general is bfloat16.dot_general
    assert model.dtype == jnp.float32
    for kind in (vit_jax.ViT_S16, vit_jax.Seq2SeqTransformer):
        assert policy.fastest_dtype(kind) == "bfloat16"
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert policy.fastest_dtype(vit_jax.ViT_S16) == "float32"


@pytest.mark.usefixtures("single_cpu")
@pytest.mark.parametrize("make", [resnet_jax.ResNet18, resnet_jax.AirbenchNet])
def test_convolutions_are_rounded_with_amx_alone(monkeypatch, make):
    model = _bfloat16(monkeypatch, "amx_tile amx_bf16", make)
    assert model.conv_general_dilated.keywords == {"rounds_to_bfloat16": True}
    assert model.dtype == jnp.float32
    assert policy.jit_of_model(model, platform="cpu") is jax.jit
    assert policy.runs_steps_in_a_loop(model, platform="cpu")
    assert policy.fastest_dtype(make) == "bfloat16"
    model = _bfloat16(monkeypatch, "avx512_bf16 fma", make)
    assert model.conv_general_dilated is resnet_jax.conv_general_dilated
    assert model.dtype == jnp.float32
    assert policy.fastest_dtype(make) == "float32"


@pytest.mark.usefixtures("single_cpu")
def test_a_processor_without_bfloat16_computes_in_float32(monkeypatch):
    model = _bfloat16(monkeypatch, "avx512f")
    assert model.dot_general is jax.lax.dot_general
    assert model.dtype == jnp.float32
    assert policy.fastest_dtype(vit_jax.ViT_S16) == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("7.5", "float32"),
        ("8.0", "bfloat16"),
        ("10.0", "bfloat16"),
        ("gfx942", "bfloat16"),
    ],
)
def test_gpus_with_bfloat16_use_it(monkeypatch, capability, expected):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert policy.fastest_dtype(vit_jax.ViT_S16) == expected


def test_older_gpus_have_no_attention_of_cudnn(monkeypatch):
    facts = {"platform": "gpu", "device_kind": "Tesla T4", "compute_capability": "7.5"}
    device = types.SimpleNamespace(**facts)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    fields = {"attention_implementation": "cudnn", "dtype": jnp.bfloat16}
    with pytest.raises(ValueError, match=r"8\.0 \(A100\).* got Tesla T4 and bfloat16"):
        policy.adapt_model(vit_jax.ViT_S16(10, **fields))
    device.compute_capability = "8.0"
    policy.adapt_model(vit_jax.ViT_S16(10, **fields))


@pytest.mark.usefixtures("single_cpu")
def test_a_compiler_that_cannot_multiply_bfloat16_is_noticed(monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: Unsupported element type")

    monkeypatch.setattr(bfloat16, "dot_general", fail)
    model = _bfloat16(monkeypatch, "avx512_bf16")
    assert model.dot_general is jax.lax.dot_general
    assert policy.fastest_dtype(vit_jax.ViT_S16) == "float32"


def test_auto_is_recorded_and_kept_when_the_run_is_resumed(monkeypatch, tmp_path):
    monkeypatch.setattr(policy, "fastest_dtype", lambda _: "bfloat16")
    auto = tiny_config({"dtype": "auto"})
    chosen = choose_dtype(auto, tmp_path, overwrite=False)
    assert chosen == tiny_config({"dtype": "bfloat16"})
    with wd.open_workdir(tmp_path, to_json(chosen)):
        pass
    monkeypatch.setattr(policy, "fastest_dtype", lambda _: "float32")
    assert choose_dtype(auto, tmp_path, overwrite=False).dtype == "bfloat16"
    assert choose_dtype(auto, tmp_path, overwrite=True).dtype == "float32"
    assert choose_dtype(auto, tmp_path / "new", overwrite=False).dtype == "float32"


def test_a_run_records_what_auto_chose(monkeypatch, tmp_path):
    monkeypatch.setattr(policy, "fastest_dtype", lambda _: "bfloat16")
    summary = train_tiny(tmp_path, {"dtype": "auto", "num_steps": 1})
    assert summary["config"]["dtype"] == "bfloat16"
