"""The table of the config: complete, and the one source of help and reference."""

import dataclasses
import pathlib
import subprocess
import sys
import typing

import pytest

from train_jax.config import reference, signatures
from train_jax.config.fields import SECTIONS, TABLE, Config
from train_jax.config.models import MODELS
from train_jax.config.rules import rule_of
from train_jax.learning.optim import OPTIMIZERS, SCHEDULES

REFERENCE = pathlib.Path("docs/config.md")

ROWS = (
    [(field, option) for field, option in TABLE.items()]
    + [
        (f"{model}.{name}", option)
        for model in MODELS
        for name, option in signatures.model_options(model).items()
    ]
    + [
        (f"{optimizer}.{name}", option)
        for optimizer in OPTIMIZERS
        for name, option in signatures.optimizer_options(optimizer).items()
    ]
)


@pytest.mark.parametrize(("field", "option"), ROWS, ids=[field for field, _ in ROWS])
def test_every_field_has_a_rule_and_a_meaning(field, option):
    assert option.meaning and "\n" not in option.meaning
    assert option.rule.allowed
    if option.default is not dataclasses.MISSING:
        assert option.rule.passes(option.default)
    for wrong in (object(), b"", [[]], {"a": 1}):
        assert not option.rule.passes(wrong)


def test_every_field_of_the_dataclasses_is_in_the_table():
    for section, its_class in [*SECTIONS.items(), ("", Config)]:
        for field in dataclasses.fields(its_class):
            is_row = f"{section}.{field.name}".lstrip(".") in TABLE
            is_other = field.name in {*SECTIONS, "arguments", "sweep", "groups"}
            assert is_row != is_other, field.name


def test_the_table_names_all_models_optimizers_and_schedules():
    names = {
        "model.name": tuple(MODELS),
        "optimizer.name": tuple(OPTIMIZERS),
        "optimizer.schedule": SCHEDULES,
    }
    for field, known in names.items():
        section, name = field.split(".")
        annotation = typing.get_type_hints(SECTIONS[section])[name]
        assert set(typing.get_args(annotation)) == set(known)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_arguments_are_not_named_like_fields(optimizer):
    for section, arguments in (
        ("optimizer", signatures.optimizer_options(optimizer)),
        *(("model", signatures.model_options(name)) for name in MODELS),
    ):
        assert not {f"{section}.{name}" for name in arguments} & TABLE.keys()


def test_sweepable_fields():
    swept = {
        optimizer: [
            field
            for field, option in signatures.all_options(
                model="vit", optimizer=optimizer
            ).items()
            if option.sweepable
        ]
        for optimizer in ("adamw", "sgd")
    }
    shared = ["optimizer.learning_rate", "optimizer.weight_decay"]
    shared.append("optimizer.clip_norm")
    rest = ["label_smoothing", "ema_decay"]
    own = ["optimizer.b1", "optimizer.b2", "optimizer.eps"]
    assert swept["adamw"] == [*shared, *own, *rest]
    assert swept["sgd"] == [*shared, "optimizer.momentum", *rest]


@pytest.mark.parametrize(
    ("annotation", "allowed"),
    [
        (typing.Literal["pre", "post"], "one of pre, post"),
        (typing.Literal["pre", "post"] | None, "one of pre, post, or None"),
        (typing.Literal["pre", "post", None], "one of pre, post, None"),
        (str | None, "a string that is not empty, or None"),
        (int, "an integer in [1, 65536]"),
    ],
)
def test_a_rule_from_an_annotation(annotation, allowed):
    rule = rule_of("norm", annotation)
    assert rule.allowed == allowed
    assert rule.passes(None) == ("None" in allowed)
    assert rule.passes("pre") == ("pre" in allowed or "string" in allowed)
    assert not rule.passes("") and not rule.passes(0)


def test_a_type_without_a_rule():
    with pytest.raises(TypeError, match="no rule for 'block'"):
        rule_of("block", type)


def test_the_reference_has_every_field():
    page = reference.render()
    for field in TABLE:
        assert f"| `{field}`" in page
    for name in MODELS:
        assert f"`{name}`" in page or f"'{name}'" in page
    assert "| `optimizer.momentum` (sweep) | `0.9` | a number in [0, 1) |" in page
    assert "`patch_size=16`, `width=768`, `depth=12`, `num_heads=12` |" in page
    assert "| `resnet34` | `stage_sizes=(3, 4, 6, 3)` |" in page
    columns = {line.count(" | ") for line in page.splitlines() if line[:3] == "| `"}
    assert columns == {1, 3}  # presets, fields


def test_the_reference_is_up_to_date():
    if not REFERENCE.exists():
        pytest.skip(f"there is no {REFERENCE}")
    assert REFERENCE.read_text(encoding="utf-8") == reference.render(), (
        f"python -m train_jax.config.reference > {REFERENCE}"
    )


def test_the_table_is_read_without_jax():
    program = "import sys, train_jax.config.fields; sys.exit('jax' in sys.modules)"
    assert subprocess.call([sys.executable, "-c", program]) == 0
