"""Write the demo of a trained model as a Hugging Face Space."""

import importlib.metadata
import json
import pathlib
import re
import shutil
import sys
import tempfile

from train_jax.data import is_folder
from train_jax.data.folder import PREFIX
from train_jax.output import checksums
from train_jax.output import workdir as wd
from train_jax.output.checkpoint_search import METADATA
from train_jax.output.files import read_json, replace_file

_PACKAGES = ("vit_jax", "resnet_jax", "weight_files", "train_jax")

_README = """\
---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
---

Draw or drop a picture, and see what {title} says and looks at.
"""

_APP = """\
import sys

from train_jax.demo import main

sys.exit(main(["--workdir", "run", "--run", "{run}", "--host", "0.0.0.0"]))
"""


def write_space(
    folder: pathlib.Path, workdir: pathlib.Path, *, step: int, run: int, title: str
) -> None:
    """Write a folder that can be uploaded as a Space: the page, the model, the code.

    Args:
        folder: where to write; it must be empty, or not be there.
        workdir: folder of the model's training.
        step: of the checkpoint to take.
        run: which of several runs in the checkpoint, from 0.
        title: of the Space.

    Raises:
        ValueError: if the folder has files in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--space must be an empty folder, got {str(folder)!r}")
    try:
        gradio = importlib.metadata.version("gradio")
        requirements = "".join(f"{line}\n" for line in _requirements())
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"--space needs {error.name} to be installed") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".space", dir=folder.parent) as draft:
        space = pathlib.Path(draft, "space")
        root = pathlib.Path(__file__).parents[2]
        for package in _PACKAGES:
            ignored = shutil.ignore_patterns("__pycache__", "configs")
            shutil.copytree(root / package, space / package, ignore=ignored)
        checkpoint = pathlib.Path(wd.CHECKPOINTS, str(step))
        shutil.copytree(workdir / checkpoint, space / "run" / checkpoint)
        _remove_paths(space / "run" / checkpoint)
        replace_file(space / "requirements.txt", requirements)
        replace_file(space / "app.py", _APP.format(run=run))
        # The hub's default is older than what the packages need.
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        readme = _README.format(title=title, gradio=gradio, python=python)
        replace_file(space / "README.md", readme)
        space.replace(folder)


def _remove_paths(checkpoint: pathlib.Path) -> None:
    """Remove from a copied checkpoint's metadata where its data lie."""
    file = checkpoint / METADATA / "metadata"
    metadata = read_json(file)
    config = metadata["config"]
    config |= dict.fromkeys(("dataset.data_dir", "dataset.manual_dir", "init_from"))
    if is_folder(config["dataset.name"]):
        config["dataset.name"] = f"{PREFIX}pictures"
    file.write_text(json.dumps(metadata), "utf-8")
    checksums.write_checksums(checkpoint)


def _requirements() -> list[str]:
    """List what the trainer needs, as this installation does."""
    lines = importlib.metadata.requires("vit-resnet-jax") or []
    wanted = (line for line in lines if not re.search(r"extra == .(?!train.)", line))
    return [line.partition(";")[0].strip() for line in wanted]
