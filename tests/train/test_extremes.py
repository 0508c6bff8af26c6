"""What 0, the smallest and a huge value do, for every numeric field."""

import pytest

from tests.train.tiny import tiny_config, train_tiny
from train_jax.config.signatures import all_options
from train_jax.run.failures import Diverged
from train_jax.run.setup import set_up

SMALLEST = {int: 1, float: 1.2e-38}  # the latter is the smallest that float32 keeps
HUGE = {int: 10**12, float: 1e38}

# What happens: it is refused before anything is read; it is told in training, by a
# warning or the end of the run; or it is meant and does what it says.
R, T, M = "refused", "told", "meant"

# Field → what its three values do.
INTEGERS = {
    "augment.crop_padding": (M, M, R),
    "batch_size": (R, R, R),  # 1 is not divisible by the tests' eight devices
    "eval_batch_size": (R, M, M),
    "accumulation_steps": (R, M, R),
    "num_epochs": (R, M, R),
    "num_steps": (R, M, R),
    "seed": (M, M, R),
    "dataset.image_size": (R, R, R),  # 1 is not divisible by the patch size
    "dataset.split_seed": (M, M, R),
    "dataset.num_workers": (M, M, R),
    "num_seeds": (R, M, R),
    "checkpoint.every_epochs": (R, M, M),
    "checkpoint.every_steps": (R, M, M),
    "checkpoint.keep": (R, M, M),
    "model.patch_size": (R, M, R),
    "model.width": (R, R, R),  # 1 is not divisible by two heads
    "model.depth": (R, M, R),
    "model.num_heads": (R, M, R),
    "model.num_registers": (M, M, R),
    "model.representation_size": (R, M, R),
}
NUMBERS = {
    **{
        f"augment.{name}": (M, M, R)
        for name in (
            *("rotation", "scaling", "shear", "shift"),
            *("brightness", "contrast"),
            "erasing_rate",
        )
    },
    # The tests' images are grey.
    "augment.saturation": (M, R, R),
    "augment.hue": (M, R, R),
    "augment.mixup_alpha": (M, M, M),
    "augment.cutmix_alpha": (M, M, M),
    "optimizer.learning_rate": (R, T, T),
    "optimizer.drop_factor": (M, M, R),
    "optimizer.warmup_epochs": (M, M, R),
    "optimizer.cooldown_epochs": (M, M, R),
    "optimizer.layer_decay": (R, R, R),
    "optimizer.weight_decay": (M, M, R),
    "optimizer.clip_norm": (R, R, M),
    "optimizer.b1": (M, M, R),
    "optimizer.b2": (M, M, R),
    "optimizer.eps": (R, M, R),
    "label_smoothing": (M, M, R),
    "ema_decay": (M, M, R),
    "checkpoint.every_minutes": (R, M, M),
    "model.mlp_ratio": (R, R, R),
    "model.dropout_rate": (M, M, R),
    "model.attention_dropout_rate": (M, M, R),
    "model.embedding_dropout_rate": (M, M, R),
    "model.stochastic_depth_rate": (M, M, R),
    "model.layer_scale": (M, M, T),
    "model.position_std": (M, M, T),
    "model.norm_epsilon": (R, M, R),
}
CASES = [
    (field, value, outcome)
    for kind, table in ((int, INTEGERS), (float, NUMBERS))
    for field, outcomes in table.items()
    for value, outcome in zip((0, SMALLEST[kind], HUGE[kind]), outcomes, strict=True)
]


def test_every_numeric_field_is_in_the_table():
    numeric = {
        field
        for field, option in all_options(model="vit", optimizer="adamw").items()
        if option.rule.allowed.startswith(("a number", "an integer"))
    }
    assert numeric == set(INTEGERS) | set(NUMBERS)


@pytest.mark.parametrize(
    ("field", "value", "outcome"), [case for case in CASES if case[2] != T]
)
def test_an_extreme_value(field, value, outcome):
    def make_parts():
        return set_up(tiny_config({"optimizer.weight_decay": 0.0, field: value}))

    if outcome == R:
        name = field.rpartition(".")[2]
        with pytest.raises(ValueError, match=f"{name}|batch_size|patch_size") as caught:
            make_parts()
        assert "\n" not in str(caught.value)
    else:
        assert make_parts().abstract_state.step.shape == ()


@pytest.mark.parametrize(
    ("field", "value"), [case[:2] for case in CASES if case[2] == T]
)
def test_an_extreme_value_is_told_in_training(field, value, tmp_path, capsys):
    changes = {"optimizer.weight_decay": 0.0, "model.mlp_ratio": None, field: value}
    # A falling rate that is the smallest would be rounded to 0.
    changes |= {"num_steps": 3, "optimizer.schedule": "constant"}
    try:
        train_tiny(tmp_path, changes)
    except Diverged:
        return
    assert "warning: 3 steps have not changed " in capsys.readouterr().err
