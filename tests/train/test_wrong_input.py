"""Whatever is wrong is one line that says what is allowed, and nothing is written.

More of it, by its place: data/ (sets that are missing or damaged), test_config (config
files), test_processes (flags of several processes).
"""

import json
import shutil

import pytest

import train
from tests.train.tiny import RESNET, TINY, tiny_config
from train_jax import ablate, explain
from train_jax.config import models
from train_jax.config.config import load_config, to_json
from train_jax.config.files import bundled_configs
from train_jax.output import workdir as wd

CONFIG = "configs/vit_digits.py"
CONFIGS = ", ".join(bundled_configs())
SMALL = {field: str(value) for field, value in TINY.items()}

MODELS = ", ".join(models.MODELS)
TOP_LEVEL = (
    "config.batch_size, config.eval_batch_size, config.accumulation_steps, "
    "config.num_epochs, config.num_steps, config.label_smoothing, config.ema_decay, "
    "config.init_from, config.freeze, config.dtype, config.seed, config.num_seeds, "
    "config.fsdp, config.debug_nans, config.profile_steps, "
    "config.test_checkpoint, config.test_augmentation"
)
SWEEPABLE = (
    "optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm, "
    "optimizer.b1, optimizer.b2, optimizer.eps, label_smoothing, ema_decay"
)
MOMENTUM = (
    "optimizer 'adamw' has b1, b2, eps, nesterov; momentum is an argument of sgd, "
    "muon, adafactor, rmsprop, sm3"
)
SPLIT = (
    "allowed: a name such as 'train', or one slice of it: 'train[:90%]', "
    "'train[55000:]', 'train[10%:20%]'"
)
NAME = (
    "allowed: 'digits', 'folder:PATH', or a TFDS image-classification set as "
    "'dataset', 'dataset/config' or 'dataset:1.2.3'"
)

# Field=value → what is said, after "config." where the line starts with that.
FIELDS = {
    "batchsize=3": ".batchsize is unknown; did you mean config.batch_size?",
    "sweep.ema_deca=(0.9, 0.99)": (
        ".sweep.ema_deca is unknown; did you mean config.sweep.ema_decay?"
    ),
    "sweep.optimizer.learning_rat=(0.1, 0.2)": (
        ".sweep.optimizer.learning_rat is unknown; did you mean "
        "config.sweep.optimizer.learning_rate?"
    ),
    "lr=1": f".lr is unknown; known fields: {TOP_LEVEL}",
    "model=vit": f".model is unknown; known fields: {TOP_LEVEL}",
    "=3": f". is unknown; known fields: {TOP_LEVEL}",
    "learning_rate=1": (
        ".learning_rate is unknown; did you mean config.optimizer.learning_rate?"
    ),
    "model.nam=vit": ".model.nam is unknown; did you mean config.model.name?",
    "model.name=vgg": f".model.name must be one of {MODELS}, got 'vgg'",
    "model.name=3": f".model.name must be one of {MODELS}, got 3",
    "model.width=0": ".model.width must be an integer in [1, 65536], got 0",
    "model.width=16.0": ".model.width must be an integer in [1, 65536], got 16.0",
    "model.width=None": ".model.width must be an integer in [1, 65536], got None",
    "model.depth=-2": ".model.depth must be an integer in [1, 1024], got -2",
    "model.num_heads=5": (
        ": width must be divisible by num_heads, got width 16 and num_heads 5"
    ),
    "model.num_heads=two": (
        ".model.num_heads must be an integer in [1, 65536], got 'two'"
    ),
    "model.patch_size=3": (
        ": patch_size must divide the image's height and width, got patch_size 3 and "
        "an image of 8x8"
    ),
    "model.patch_size=16": (
        ": patch_size must divide the image's height and width, got patch_size 16 and "
        "an image of 8x8"
    ),
    "model.mlp_ratio=0": (
        ": mlp_ratio must leave the MLP a width of at least 1, got mlp_ratio 0 and "
        "width 16"
    ),
    "model.mlp_ratio=-1": (
        ".model.mlp_ratio must be a number in [0, 1024], or None, got -1"
    ),
    "model.dropout_rate=1.0": (
        ".model.dropout_rate must be a number in [0, 1), got 1.0"
    ),
    "model.dropout_rate=-0.1": (
        ".model.dropout_rate must be a number in [0, 1), got -0.1"
    ),
    "model.pool=max": (
        ".model.pool must be one of cls, mean, sequence, map, got 'max'"
    ),
    "model.stem=resnet": ".model.stem must be one of patches, conv, got 'resnet'",
    "model.num_registers=-1": (
        ".model.num_registers must be an integer in [0, 65536], got -1"
    ),
    "model.position_embedding=True": (
        ".model.position_embedding must be one of learned, sincos2d, rope, or None, "
        "got True"
    ),
    "model.norm=batch": ".model.norm must be one of pre, post, or None, got 'batch'",
    "model.attention_implementation=flash": (
        ".model.attention_implementation must be one of own, cudnn, xla, got 'flash'"
    ),
    "model.attention_implementation=cudnn": (
        ".model.attention_implementation 'cudnn' needs a GPU of at least compute "
        "capability 8.0 (A100) and config.dtype bfloat16, got cpu and float32"
    ),
    "model.remat=maybe": ".model.remat must be True or False, got 'maybe'",
    "model.scan=2": ".model.scan must be True or False, got 2",
    "model.residual=maybe": ".model.residual must be True or False, got 'maybe'",
    "optimizer.name=sam": (
        ".optimizer.name must be one of adamw, adam, sgd, muon, adabelief, adadelta, "
        "adafactor, adagrad, adamax, adan, lamb, lion, radam, rmsprop, "
        "sm3, yogi, got 'sam'"
    ),
    "optimizer.layer_decay=0": (
        ".optimizer.layer_decay must be a number in [0.001, 1], or None, got 0"
    ),
    "optimizer.cooldown_epochs=9": (
        ".optimizer.cooldown_epochs must leave room for the warm-up, got 45 and 0 of "
        "20 steps"
    ),
    "optimizer.learning_rate=-1": (
        ".optimizer.learning_rate must be a number above 0, got -1"
    ),
    "optimizer.learning_rate=nan": (
        ".optimizer.learning_rate must be a number above 0, got 'nan'"
    ),
    "optimizer.learning_rate=1e400": (
        ".optimizer.learning_rate must be a number above 0, got inf"
    ),
    "optimizer.learning_rate=(1,2)": (
        ".optimizer.learning_rate must be a number above 0, got (1, 2)"
    ),
    "optimizer.learning_rate={}": (
        ".optimizer.learning_rate must be a number above 0, got {}"
    ),
    "optimizer.learning_rate=True": (
        ".optimizer.learning_rate must be a number above 0, got True"
    ),
    "optimizer.learning_rate=0": (
        ".optimizer.learning_rate must be a number above 0, got 0"
    ),
    "optimizer.learning_rate=1e-46": (
        ".optimizer.learning_rate must be a number above 0, got 1e-46 (in float32: 0)"
    ),
    "optimizer.learning_rate=1e39": (
        ".optimizer.learning_rate must be a number above 0, got 1e+39 (in float32: inf)"
    ),
    "optimizer.weight_decay=1000": (
        ".optimizer.weight_decay × config.optimizer.learning_rate must be below 1, the "
        "share of the parameters that a step takes away, got 1000.0 × 0.003"
    ),
    "sweep.optimizer.weight_decay=(0.1,1000)": (
        ".optimizer.weight_decay × config.optimizer.learning_rate must be below 1, the "
        "share of the parameters that a step takes away, got 1000 × 0.003"
    ),
    "optimizer.clip_norm=0": (
        ".optimizer.clip_norm must be a number at least 0.001, or None, got 0"
    ),
    "optimizer.eps=0": (".optimizer.eps must be a number in [1.17549e-38, 1], got 0"),
    "model.patch_size=1000000000000": (
        ".model.patch_size must be an integer in [1, 65536], got 1000000000000"
    ),
    "optimizer.b2=0.999999999": (
        ".optimizer.b2 must be a number in [0, 1), got 0.999999999 (in float32: 1)"
    ),
    "optimizer.schedule=step": (
        ".optimizer.schedule must be one of constant, cosine, linear, rsqrt, "
        "steps, got 'step'"
    ),
    "optimizer.warmup_epochs=9": (
        ".optimizer.warmup_epochs must be shorter than the training, got 9 of 4 epochs"
    ),
    "optimizer.weight_decay_mask=biases": (
        ".optimizer.weight_decay_mask must be one of kernels, all, got 'biases'"
    ),
    "optimizer.clip_norm=-1": (
        ".optimizer.clip_norm must be a number at least 0.001, or None, got -1"
    ),
    "optimizer.b1=1": ".optimizer.b1 must be a number in [0, 1), got 1",
    "optimizer.momentum=0.5": f".optimizer.momentum is unknown: {MOMENTUM}",
    "optimizer.b2=-1": ".optimizer.b2 must be a number in [0, 1), got -1",
    "augment.crop_area=0.5": (
        ".augment.crop_area must be two numbers in (0, 1], the first one not larger, "
        "or None, got 0.5"
    ),
    "augment.crop_area=(0.5,0.1)": (
        ".augment.crop_area must be two numbers in (0, 1], the first one not larger, "
        "or None, got (0.5, 0.1)"
    ),
    "augment.crop_area=(0.1,1.0)": (
        ".augment.crop_area needs images that are streamed, config.dataset.streaming "
        "is 'auto' and config.dataset.name 'digits'"
    ),
    "dataset.streaming=yes": (
        ".dataset.streaming must be one of auto, True, False, got 'yes'"
    ),
    "dataset.streaming=True": (
        ".dataset.streaming must be 'auto' or False for dataset 'digits', which is "
        "made in memory, got True"
    ),
    "dataset.num_workers=-1": (
        ".dataset.num_workers must be an integer in [0, 256], or None, got -1"
    ),
    "augment.crop_padding=-1": (
        ".augment.crop_padding must be an integer, at least 0, got -1"
    ),
    "augment.crop_padding=8": (
        ".augment.crop_padding must be less than 8, the side of an image, got 8"
    ),
    "augment.flip=True": (
        ".augment.flip must be one of random, alternating, or None, got True"
    ),
    "augment.crop_fill=white": (
        ".augment.crop_fill must be one of black, reflection, got 'white'"
    ),
    "augment.trivial_augment=1": (
        ".augment.trivial_augment must be True or False, got 1"
    ),
    "augment.erasing_rate=1.5": (
        ".augment.erasing_rate must be a number in [0, 1], got 1.5"
    ),
    "augment.rotation=181": (".augment.rotation must be a number in [0, 180], got 181"),
    "augment.scaling=1": ".augment.scaling must be a number in [0, 0.9], got 1",
    "augment.shear=-3": ".augment.shear must be a number in [0, 80], got -3",
    "augment.shift=2.5": ".augment.shift must be a number in [0, 1], got 2.5",
    "augment.brightness=1.5": (
        ".augment.brightness must be a number in [0, 1], got 1.5"
    ),
    "augment.contrast=x": ".augment.contrast must be a number in [0, 1], got 'x'",
    "augment.saturation=0.4": (
        ".augment.saturation must be 0 for images of 1 channels, got 0.4"
    ),
    "augment.hue=0.6": ".augment.hue must be a number in [0, 0.5], got 0.6",
    "optimizer.milestones=(0.5,0.2)": (
        ".optimizer.milestones must be a tuple of increasing numbers between 0 and 1, "
        "got (0.5, 0.2)"
    ),
    "optimizer.drop_factor=2": (
        ".optimizer.drop_factor must be a number in [0, 1], got 2"
    ),
    "model.stochastic_depth_rate=1": (
        ".model.stochastic_depth_rate must be a number in [0, 1), got 1"
    ),
    "model.layer_scale=-1": (
        ".model.layer_scale must be a number at least 0, or None, got -1"
    ),
    "test_augmentation=crop": (
        ".test_augmentation must be one of flip, flip_shift, or None, got 'crop'"
    ),
    "groups.head=3": ".groups.head must be a section with the field params",
    "groups.head.learning_rate=1": (
        ".groups.head.params is missing: a regular expression"
    ),
    "groups.head.params=(": ".groups.head.params must be a regular expression, got '('",
    "groups.head.params=hat": (
        ".groups.head.params must fit a parameter of the model, such as "
        "'pos_embedding', got 'hat'"
    ),
    "augment.mixup_alpha=-1": (
        ".augment.mixup_alpha must be a number at least 0, got -1"
    ),
    "dataset.name=": ".dataset.name must be a string that is not empty, got ''",
    "dataset.name=3": ".dataset.name must be a string that is not empty, got 3",
    "dataset.name=../../etc": f"dataset '../../etc' is not a name; {NAME}",
    "dataset.name=mnist/": f"dataset 'mnist/' is not a name; {NAME}",
    "dataset.name=cifr10": (
        "dataset 'cifr10' is unknown; allowed: 'digits' or any TFDS "
        "image-classification set; near: cifar10, cifar100, cifar10_n"
    ),
    "dataset.train_split=dev": (
        "dataset 'digits' has no split 'dev'; it has: train, test"
    ),
    "dataset.train_split=train[": f"split 'train[' is not understood; {SPLIT}",
    "dataset.train_split=train+test": f"split 'train+test' is not understood; {SPLIT}",
    "dataset.val_split=train[5:3]": (
        "split 'train[5:3]' is empty: it selects none of 1437 examples"
    ),
    "dataset.test_split=test[:361]": (
        "split 'test[:361]' reaches beyond the 360 examples that there are"
    ),
    "dataset.mean=(0.5,0.5,0.5)": (
        ".dataset.mean must have 1 values, one for each channel, got (0.5, 0.5, 0.5)"
    ),
    "dataset.mean=half": (
        ".dataset.mean must be a tuple of numbers in [0, 1], one for each channel, "
        "'pixel', or None, got 'half'"
    ),
    "dataset.mean=(125.3,)": (
        ".dataset.mean must be a tuple of numbers in [0, 1], one for each channel, "
        "'pixel', or None, got (125.3,)"
    ),
    "dataset.std=(0,)": (
        ".dataset.std must be a tuple of numbers in (0, 1], one for each channel, or "
        "None, got (0,)"
    ),
    "dataset.std=(1e-46,)": (
        ".dataset.std must be a tuple of numbers in (0, 1], one for each channel, or "
        "None, got (1e-46,)"
    ),
    "dataset.allow_overlap=1": ".dataset.allow_overlap must be True or False, got 1",
    "dataset.data_dir=3": (
        ".dataset.data_dir must be a string that is not empty, or None, got 3"
    ),
    "batch_size=0": ".batch_size must be an integer, at least 1, got 0",
    "batch_size=1e2": ".batch_size must be an integer, at least 1, got 100.0",
    "batch_size=400": (
        ".batch_size must be at most 320, the number of examples in 'train[:320]', got "
        "400"
    ),
    "batch_size=60": (
        ".batch_size must be divisible by 8 (8 devices × 1 accumulation_steps), such "
        "as 56 or 64, got 60"
    ),
    "accumulation_steps=3": (
        ".batch_size must be divisible by 24 (8 devices × 3 accumulation_steps), such "
        "as 48 or 72, got 64"
    ),
    "eval_batch_size=0": ".eval_batch_size must be an integer, at least 1, got 0",
    "num_epochs=0": ".num_epochs must be an integer in [1, 2147483647], got 0",
    "num_steps=1.5": (
        ".num_steps must be an integer in [1, 2147483647], or None, got 1.5"
    ),
    "label_smoothing=1": ".label_smoothing must be a number in [0, 1), got 1",
    "ema_decay=1.0": ".ema_decay must be a number in [0, 1), or None, got 1.0",
    "dtype=float16": ".dtype must be one of float32, bfloat16, auto, got 'float16'",
    "seed=-1": ".seed must be an integer in [0, 2147483647], got -1",
    "seed=4294967296": ".seed must be an integer in [0, 2147483647], got 4294967296",
    "num_seeds=0": ".num_seeds must be an integer in [1, 1024], got 0",
    "fsdp=2": ".fsdp must be True or False, got 2",
    "debug_nans=yes": ".debug_nans must be True or False, got 'yes'",
    "checkpoint.every_epochs=0": (
        ".checkpoint.every_epochs must be an integer, at least 1, got 0"
    ),
    "checkpoint.every_steps=0": (
        ".checkpoint.every_steps must be an integer, at least 1, or None, got 0"
    ),
    "checkpoint.every_minutes=0": (
        ".checkpoint.every_minutes must be a number above 0, or None, got 0"
    ),
    "test_checkpoint=first": (
        ".test_checkpoint must be one of last, best, got 'first'"
    ),
    "num_epochs=2000000000": (
        ".num_epochs must be at most 429496729, as steps are counted in int32, got "
        "2000000000"
    ),
    "checkpoint.keep=None": ".checkpoint.keep must be an integer, at least 1, got None",
    "sweep=3": f".sweep is unknown; known fields: {TOP_LEVEL}",
    "sweep.model.width=(16,32)": (
        f".model.width cannot be swept in one program; those that can: {SWEEPABLE}"
    ),
    "sweep.seed=(1,2)": (
        f".seed cannot be swept in one program; those that can: {SWEEPABLE}"
    ),
    "sweep.optimizer.learning_rate=1e-3": (
        ".sweep.optimizer.learning_rate must be a tuple of values, each of them a "
        "number above 0, got 0.001"
    ),
    "sweep.optimizer.clip_norm=(1,None)": (
        ".sweep.optimizer.clip_norm must be a tuple of values, each of them a number "
        "at least 0.001, got (1, None)"
    ),
    "sweep.ema_decay=(0.9,1.5)": (
        ".sweep.ema_decay must be a tuple of values, each of them a number in [0, 1), "
        "got (0.9, 1.5)"
    ),
    "sweep.optimizer.momentum=(0.5,0.9)": (
        f".sweep.optimizer.momentum is unknown: {MOMENTUM}"
    ),
    "sweep.label_smoothing=(0.1,0.1)": (
        ".sweep.label_smoothing must have different values, got (0.1, 0.1)"
    ),
}


def refuse(main, arguments, capsys):
    """Run a command, which has to refuse with one line, and return that."""
    try:
        code = main(arguments)
    except SystemExit as end:  # of argparse, after a line on how it is used
        code = end.code
    assert code == 2
    captured = capsys.readouterr()
    *usage, line = captured.err.strip().splitlines()
    assert all(u.startswith(("usage:", " ")) for u in usage)
    return line.partition(": error: ")[2]


def tiny_arguments(workdir, **fields):
    """The command line of the tiny run."""
    values = [f"--config.{k}={v}" for k, v in (SMALL | fields).items()]
    return ["--config", CONFIG, "--workdir", str(workdir), *values]


@pytest.mark.parametrize("argument", FIELDS)
def test_fields(tmp_path, capsys, argument):
    expected = FIELDS[argument]
    if expected.startswith(":"):
        expected = f"config.model{expected}"
    elif expected.startswith("."):
        expected = f"config{expected}"
    workdir = tmp_path / "run"
    arguments = [*tiny_arguments(workdir), f"--config.{argument}"]
    assert refuse(train.main, arguments, capsys) == expected
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: --config"),
        (["--config"], "argument --config: expected one argument"),
        (["--config=no.py"], "--config must name a readable file, got 'no.py'"),
        (
            ["--config=configs"],
            f"--config must name a readable file, or one of {CONFIGS}, got 'configs'",
        ),
        (
            ["--config=README.md"],
            "--config must name a Python file (.py), got 'README.md'",
        ),
        (
            ["--config", CONFIG, "--config.seed"],
            "expected --config.FIELD=VALUE, got '--config.seed'",
        ),
        (
            ["--config", CONFIG, "--confg.seed=1"],
            "expected --config.FIELD=VALUE, got '--confg.seed=1'; "
            "did you mean --config.seed?",
        ),
        (["--config", CONFIG, "x"], "expected --config.FIELD=VALUE, got 'x'"),
        (
            ["--config", CONFIG, "--workdir"],
            "argument --workdir: expected one argument",
        ),
        (
            ["--config", CONFIG, "--num_processes=two"],
            "argument --num_processes: invalid int value: 'two'",
        ),
        (
            ["--config", CONFIG, "--process_id=1"],
            "--process_id needs --coordinator=HOST:PORT, got 1",
        ),
        (
            ["--config", CONFIG, "--coordinator=here"],
            "--coordinator must be HOST:PORT or auto, got 'here'",
        ),
    ],
)
def test_flags(capsys, arguments, expected):
    assert refuse(train.main, arguments, capsys) == expected


@pytest.mark.parametrize("name", ["adafactor", "lamb", "sm3"])
def test_optimisers_that_look_at_whole_arrays_refuse_scan(tmp_path, capsys, name):
    fields = {"model.scan": True, "optimizer.name": name}
    line = refuse(train.main, tiny_arguments(tmp_path / "run", **fields), capsys)
    assert line.startswith(
        f"config.model.scan must be False for the optimiser '{name}'"
    )


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    line = refuse(train.main, tiny_arguments(tmp_path / "file"), capsys)
    assert line == f"--workdir must be a folder, got the file '{tmp_path}/file'"
    line = refuse(train.main, tiny_arguments(tmp_path / "file" / "run"), capsys)
    assert line == f"--workdir '{tmp_path}/file/run' cannot be written: Not a directory"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"notes.txt": "mine"},
            "--workdir '{}' holds files but no run (config.json is missing); give a "
            "folder that is new or empty",
        ),
        (
            {"config.json": "{"},
            "{}/config.json is not valid JSON: Expecting property name enclosed in "
            "double quotes: line 1 column 2 (char 1)",
        ),
        ({"config.json": "[1]"}, "{}/config.json must hold a JSON object, got [1]"),
        (
            {"config.json": None, "summary.json": "3"},
            "{}/summary.json must hold a JSON object, got 3",
        ),
        (
            {"config.json": {"batch_size": 32, "seed": 1}},
            "--workdir '{}' holds a run of another config: config.batch_size was 32 "
            "and is 64; config.seed was 1 and is 0. Give another --workdir, or "
            "--overwrite to delete the run",
        ),
        (  # a field that version 0.1 had
            {"config.json": {"optimizer.nesterov": True}},
            "--workdir '{}' holds a run of another config: config.optimizer.nesterov "
            "was True and is False. Give another --workdir, or --overwrite to delete "
            "the run",
        ),
    ],
)
def test_folders_that_hold_something_else(tmp_path, capsys, files, expected):
    config = to_json(load_config(CONFIG, SMALL))
    for name, content in files.items():
        if not isinstance(content, str):
            content = json.dumps(config | (content or {}))
        (tmp_path / name).write_text(content)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    line = refuse(train.main, tiny_arguments(tmp_path), capsys)
    assert line == expected.format(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (
            "data_dir=gs://bucket",
            "data_dir must be gs://BUCKET/FOLDER, got 'gs://bucket'",
        ),
        (
            "manual_dir=/no/such",
            "manual_dir '/no/such' is not a folder; expected the archives there",
        ),
        (
            "data_dir=None",  # TFDS_DATA_DIR is asked then
            "TFDS_DATA_DIR must be a path on this machine or gs://BUCKET/FOLDER, got "
            "'s3://bucket'",
        ),
    ],
)
def test_data_folders(tmp_path, capsys, monkeypatch, field, expected):
    elsewhere = str(tmp_path) if "manual" in field else "s3://bucket"
    monkeypatch.setenv("TFDS_DATA_DIR", elsewhere)
    workdir = tmp_path / "run"
    arguments = ["--config", "configs/vit_mnist.py", "--workdir", str(workdir)]
    arguments.append(f"--config.dataset.{field}")
    assert refuse(train.main, arguments, capsys) == expected
    assert not workdir.exists()


def test_a_folder_without_a_complete_checkpoint(tmp_path, capsys):
    arguments = ["--workdir", str(tmp_path)]
    expected = f"workdir '{tmp_path}' holds no checkpoint"
    assert refuse(explain.main, arguments, capsys) == expected
    folder = tmp_path / wd.CHECKPOINTS / "10"
    folder.mkdir(parents=True)
    expected = f"all checkpoints in '{folder.parent}' are damaged"
    shutil.copy(CONFIG, folder)
    assert explain.main(arguments) == 2
    *_, warning, line = capsys.readouterr().err.splitlines()
    assert (
        warning == f"warning: checkpoint {folder} is damaged: checksums.json is missing"
    )
    assert line == f"python -m train_jax.explain: error: {expected}"


def test_ablations_without_variants(capsys):
    line = refuse(ablate.main, ["--config", CONFIG], capsys)
    assert line == f"--config '{CONFIG}' does not define get_variants"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("momentum", 1.0, "a number in [0, 1), got 1.0"),
        ("zero_init_residual", 2, "True or False, got 2"),
        ("shortcut", "pad", "one of projection, padding, got 'pad'"),
    ],
)
def test_fields_of_a_resnet(field, value, expected):
    with pytest.raises(ValueError) as error:
        tiny_config(RESNET | {f"model.{field}": value})
    assert str(error.value) == f"config.model.{field} must be {expected}"
