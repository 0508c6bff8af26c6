"""Download and prepare a dataset with TFDS; explain why it fails."""

import contextlib
import difflib
import functools
import io
import logging
import pathlib
import re
import shutil
import tempfile
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

from train_jax.data.names import parse_name
from train_jax.data.tfds_read import (
    image_and_label_keys,
    import_tensorflow,
    list_prepared,
    one_line,
)


def prepare(name: str, root: pathlib.Path, manual: pathlib.Path | None) -> pathlib.Path:
    """Download and prepare a dataset with TFDS, or from the archives in `manual`.

    Returns:
        The folder of the prepared dataset.

    Raises:
        ValueError: if that fails; incomplete files are removed.
    """
    builder = _tfds_builder(name, root)
    folder = pathlib.Path(builder.data_dir)
    if (folder / "dataset_info.json").is_file():
        return folder  # TFDS itself knew the default config.
    if folder.exists():
        raise ValueError(
            f"the prepared dataset in {folder} has no dataset_info.json; delete that "
            "folder and prepare or copy it again"
        )
    image_and_label_keys(builder.info)  # Refuse a text set before it is downloaded.
    _check_version(name, builder, root)
    import_tensorflow(
        f"dataset {name!r} is not prepared in {root} (--config vit_digits needs no "
        "download); preparing it"
    )
    print(f"Preparing {name} in {folder} (once) ...", flush=True)
    with _removing_leftovers(builder):
        try:
            _download_and_prepare(builder, manual)
        except Exception as error:  # TFDS and each set's code raise what they like.
            # Another process may have prepared the same set at the same time, and won.
            if not (folder / "dataset_info.json").is_file():
                message = _explain_failure(name, builder, root, manual, error)
                raise ValueError(message) from error
    return folder


def _tfds_builder(name: str, root: pathlib.Path) -> Any:
    """Get the builder of a dataset that has to be prepared."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=str(root))
    except (ValueError, AssertionError) as error:
        raise ValueError(_explain_unknown(name, root)) from error
    except Exception as error:  # Of a package that is missing, or damaged metadata.
        raise ValueError(f"TFDS can't open {name!r}: {one_line(error)}") from error


def _explain_unknown(name: str, root: pathlib.Path) -> str:
    """Explain that a dataset, config or version is unknown, and name similar ones."""
    import tensorflow_datasets as tfds

    dataset, config, _ = parse_name(name)
    prepared = list_prepared(dataset, root)
    known = tfds.list_builders(with_community_datasets=False)
    if dataset not in known:
        near = difflib.get_close_matches(dataset, ["digits", *known])
        return (
            f"dataset {name!r} is unknown; allowed: 'digits' or any TFDS "
            "image-classification set"
            + (f"; near: {', '.join(near)}" if near else "")
            + prepared
        )
    configs = list(tfds.builder_cls(dataset).builder_configs)
    if config is None or config in configs:
        versions = tfds.builder(name.partition(":")[0], data_dir=str(root)).versions
        offered = f"versions: {', '.join(map(str, versions))}"
    else:
        more = f" and {len(configs) - 8} more" if len(configs) > 8 else ""
        offered = f"configs: {', '.join(configs[:8]) or 'none'}{more}"
    return (
        f"dataset {name!r}: TFDS has {dataset!r}, but not in this config or version; "
        f"its {offered}{prepared}"
    )


def _check_version(name: str, builder: Any, root: pathlib.Path) -> None:
    """Raise ValueError for a version that the installed TFDS can only read."""
    able = {
        str(version)
        for version in (builder.canonical_version, max(builder.versions))
        if not version.tfds_version_to_prepare
    }
    if str(builder.version) not in able:
        raise ValueError(
            f"dataset {name!r}: this TFDS can't prepare version {builder.version}, "
            f"only: {', '.join(sorted(able)) or 'none'}"
            f"{list_prepared(builder.name, root)}"
        )


@contextlib.contextmanager
def _removing_leftovers(builder: Any) -> Iterator[None]:
    """If preparing fails, remove new files that are incomplete and new empty folders.

    A complete download is kept for the next time.
    """
    root = pathlib.Path(builder.data_dir_root)
    dataset, downloads = root / builder.name, root / "downloads" / builder.name
    note = dataset / ".config"
    folders = [pathlib.Path(builder.data_dir).parent, note, dataset]
    folders += [downloads, downloads.parent, root, *root.parents]
    before = {path for path in folders if path.exists()}
    before |= set(downloads.rglob("*.tmp.*"))
    try:
        yield
    finally:
        if not (pathlib.Path(builder.data_dir) / "dataset_info.json").is_file():
            # It says which config is the default; of use if one is prepared.
            notes = [] if list_prepared(builder.name, root) else [note]
            for path in {*downloads.rglob("*.tmp.*"), *notes} - before:
                shutil.rmtree(path, ignore_errors=True)
            for path in folders:
                if path not in before:
                    with contextlib.suppress(OSError):  # Not empty, or never made.
                        path.rmdir()


def _download_and_prepare(builder: Any, manual: pathlib.Path | None) -> None:
    """Run TFDS's preparation quietly, and with fewer retries."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.utils import temporary_assignment

    # TFDS retries for more than three minutes, and without a timeout waits for ever
    # behind a firewall that drops packets: too long for a machine without internet.
    # Another version of it may have other names for these.
    changes: dict[str, Callable[[Any], Any]] = {
        "MAX_RETRIES": lambda _: 3,
        "_open_url": lambda open_url: functools.partial(open_url, timeout=10),
    }
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # It would print each retry.
    tfds.disable_progress_bar()
    builder.data_dir_root.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=builder.data_dir_root) as extract_dir,
        contextlib.ExitStack() as changed,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        for name, change in changes.items():
            if hasattr(downloader, name):
                value = change(getattr(downloader, name))
                changed.enter_context(temporary_assignment(downloader, name, value))
        config = tfds.download.DownloadConfig(
            manual_dir=manual,
            # By default TFDS keeps what it extracted and reuses it by the archive's
            # name alone, but MNIST's and Fashion-MNIST's archives have equal names.
            extract_dir=extract_dir,
            try_download_gcs=False,
        )
        builder.download_and_prepare(file_format="array_record", download_config=config)


def _explain_failure(
    name: str,
    builder: Any,
    root: pathlib.Path,
    manual: pathlib.Path | None,
    error: Exception,
) -> str:
    """Explain why a dataset can't be prepared, and what helps."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    offline = requests.RequestException, urllib.error.URLError
    if isinstance(error, (*offline, tfds.download.DownloadError)):
        return _explain_missing_data(name, builder, root, manual, error)
    if isinstance(error, download_manager.NonMatchingChecksumError):
        return f"dataset {name!r}: {_explain_wrong_checksum(builder, manual, error)}"
    # Archives that only a registered user can get.
    if isinstance(error, AssertionError) and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        needs = f"dataset {name!r} needs --config.dataset.manual_dir=FOLDER"
        return f"{needs}. {one_line(error)}"
    return f"cannot prepare {name!r} in {root}: {one_line(error)}"


def _explain_wrong_checksum(
    builder: Any, manual: pathlib.Path | None, error: Exception
) -> str:
    """Explain which archive is not the original, and how it differs."""
    from tensorflow_datasets.core.download import checksums

    match = re.match("Artifact (.+), downloaded to (.+), has wrong", str(error))
    url, path = match.groups() if match else ("", "")
    expected = (builder.url_infos or {}).get(url)
    if expected is None or not pathlib.Path(path).is_file():
        return one_line(error)
    found = checksums.compute_url_info(path)
    by_hand = manual is not None and pathlib.Path(path).parent == manual
    return (
        f"{path if by_hand else url} is not the original archive. "
        f"Expected: {int(expected.size)} bytes, sha256 {expected.checksum[:12]}...; "
        f"Got: {int(found.size)} bytes, sha256 {found.checksum[:12]}... It may have "
        "been compressed anew or altered on the way; download it again"
        + (f" from {url}, or give the original" if by_hand else "")
    )


def _explain_missing_data(
    name: str,
    builder: Any,
    root: pathlib.Path,
    manual: pathlib.Path | None,
    error: Exception,
) -> str:
    """Explain how to supply a dataset that can't be downloaded."""
    files = [info.filename for info in (builder.url_infos or {}).values()]
    wanted = [
        file for file in files if file and not (manual and (manual / file).exists())
    ]
    more = f" and {len(wanted) - 8} more" if len(wanted) > 8 else ""
    prepared = pathlib.Path(builder.data_dir).relative_to(root)
    return (
        f"dataset {name!r} is not prepared in {root} and can't be downloaded: "
        f"{one_line(error)}\n"
        f"Without internet, put the original archives ({', '.join(wanted[:8])}{more}) "
        "into a folder and give it to train.py as --config.dataset.manual_dir=FOLDER,\n"
        f"or give a folder that holds a prepared {prepared} as TFDS_DATA_DIR, or to "
        "train.py as --config.dataset.data_dir=FOLDER.\n"
        "--config vit_digits runs without any download."
    )
