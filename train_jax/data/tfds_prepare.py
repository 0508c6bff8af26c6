"""Preparing a set with TFDS, from the internet or from the original archives."""

import contextlib
import difflib
import functools
import io
import logging
import pathlib
import re
import tempfile
import urllib.error
from typing import Any

from train_jax.data.tfds_read import image_and_label_keys, import_tensorflow


def prepare(name: str, root: pathlib.Path, manual: pathlib.Path | None) -> pathlib.Path:
    """Let TFDS download and prepare a set, and return the folder it is in."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    builder = _tfds_builder(name, root)
    folder = pathlib.Path(builder.data_dir)
    if (folder / "dataset_info.json").is_file():
        return folder  # TFDS itself knew the default config or the name's spelling.
    image_and_label_keys(builder)  # Refuse a text set before it is downloaded.
    tf = import_tensorflow(
        f"dataset {name!r} is not prepared in {root} (configs/vit_digits.py needs no "
        "download); preparing it"
    )
    print(f"Preparing {name} in {folder} (once) ...", flush=True)
    try:
        _download_and_prepare(builder, manual)
    except (
        requests.RequestException,
        urllib.error.URLError,
        tfds.download.DownloadError,
    ) as error:
        raise ValueError(_missing_data(name, builder, root, manual, error)) from error
    except download_manager.NonMatchingChecksumError as error:
        what, expected, found, *_ = str(error).splitlines()
        raise ValueError(
            f"dataset {name!r}: {what} {expected[2:]}; {found[2:]}"
        ) from error
    except AssertionError as error:  # Archives that only a registered user can get.
        raise ValueError(
            f"dataset {name!r} needs --config.dataset.manual_dir=FOLDER. {error}"
        ) from error
    except (OSError, tf.errors.OpError) as error:
        # Another process may have prepared the same set at the same time, and won.
        if not (folder / "dataset_info.json").is_file():
            raise ValueError(f"cannot prepare {name!r} in {root}: {error}") from error
    return folder


def _tfds_builder(name: str, root: pathlib.Path) -> Any:
    """Get TFDS's builder of a dataset that has to be prepared."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=str(root))
    except (ValueError, AssertionError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        dataset = re.split("[/:]", name)[0]
        if dataset in known:
            configs = list(tfds.builder_cls(dataset).builder_configs)
            more = f" and {len(configs) - 8} more" if len(configs) > 8 else ""
            raise ValueError(
                f"dataset {name!r}: TFDS has {dataset!r}, but not in this config or "
                f"version; its configs: {', '.join(configs[:8]) or 'none'}{more}"
            ) from error
        near = difflib.get_close_matches(dataset, ["digits", *known])
        raise ValueError(
            f"dataset {name!r} is unknown; allowed: 'digits' or any TFDS "
            "image-classification set" + (f"; near: {', '.join(near)}" if near else "")
        ) from error


def _download_and_prepare(builder: Any, manual: pathlib.Path | None) -> None:
    """Run TFDS's preparation without its chatter and its minutes of retrying."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.utils import temporary_assignment

    # TFDS retries for more than three minutes, and without a timeout waits for ever
    # behind a firewall that drops packets: too long for a machine without internet.
    open_url = functools.partial(downloader._open_url, timeout=10)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # It would print each retry.
    tfds.disable_progress_bar()
    builder.data_dir_root.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=builder.data_dir_root) as extract_dir,
        temporary_assignment(downloader, "MAX_RETRIES", 3),
        temporary_assignment(downloader, "_open_url", open_url),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        config = tfds.download.DownloadConfig(
            manual_dir=manual,
            # By default TFDS keeps what it extracted and reuses it by the archive's
            # name alone, but MNIST's and Fashion-MNIST's archives have equal names.
            extract_dir=extract_dir,
            try_download_gcs=False,
        )
        builder.download_and_prepare(file_format="array_record", download_config=config)


def _missing_data(
    name: str,
    builder: Any,
    root: pathlib.Path,
    manual: pathlib.Path | None,
    error: Exception,
) -> str:
    """Say what to put where when a dataset can't be downloaded."""
    files = [info.filename for info in (builder.url_infos or {}).values()]
    wanted = [
        file for file in files if file and not (manual and (manual / file).exists())
    ]
    more = f" and {len(wanted) - 8} more" if len(wanted) > 8 else ""
    prepared = pathlib.Path(builder.data_dir).relative_to(root)
    return (
        f"dataset {name!r} is not prepared in {root} and can't be downloaded: {error}\n"
        f"Without internet, put the original archives ({', '.join(wanted[:8])}{more}) "
        "into a folder and give it as --config.dataset.manual_dir=FOLDER,\n"
        f"or give a folder that holds a prepared {prepared} as "
        "--config.dataset.data_dir=FOLDER or TFDS_DATA_DIR.\n"
        "configs/vit_digits.py runs without any download."
    )
