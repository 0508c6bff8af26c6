"""Image-classification splits as numpy arrays: any TFDS set, or the bundled digits.

`load("mnist", "train[:90%]")` is all that the rest of the code needs to know. Importing
this module is cheap: TFDS, TensorFlow, OpenCV and scikit-learn are imported by the
functions that use them, and a set that was read once is later read from the cache
without any of them.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import tempfile
import urllib.error
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)

_NUMBER = r"-?\d+(?:_\d+)*"
_BOUND = rf"{_NUMBER}(?:(?:\.\d+)?%)?"
_SPLIT = re.compile(rf"([\w-]+)(?:\[({_BOUND})?:({_BOUND})?\])?")
_NAME = re.compile(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")

# Part of every cache key: increase it when the cached content changes its meaning.
_CACHE_FORMAT = 1
# Large enough to amortise a call, small enough not to hold a big set twice.
_RECORDS_PER_READ = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split of a dataset, in memory.

    Attributes:
        image_BHWC: uint8 images, 0 to 255.
        label_B: int32 labels, 0 to `num_classes` - 1.
        num_classes: Number of classes Y.
        class_names: Y names, in the order of the labels.
    """

    image_BHWC: np.ndarray
    label_B: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]


def load(
    name: str, split: str, *, data_dir: str | None = None, manual_dir: str | None = None
) -> Split:
    """Load a split of a dataset, or a slice of it.

    A TFDS set that is not prepared yet is prepared first, which needs TensorFlow and
    either internet or the original archives in `manual_dir`.

    Args:
        name: `"digits"`, or the name of a TFDS image-classification set:
            `"dataset"`, `"dataset/config"`, either with `":1.2.3"` for a version.
        split: A split or one slice of it, in the syntax and with the rounding of TFDS:
            `"train"`, `"train[:90%]"`, `"train[-5000:]"`.
        data_dir: Folder of prepared TFDS sets. Defaults to the environment variable
            `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        manual_dir: Folder with the dataset's original archives.

    Returns:
        The split; images of the same size, in the order of the prepared files.

    Raises:
        ValueError: If the arguments are wrong, or the data are missing or damaged.
    """
    base, start, stop = _parse_split(split)
    if name == "digits":
        data = _load_digits(base)
    else:
        data = _load_tfds(name, base, data_dir=data_dir, manual_dir=manual_dir)
    cut = _absolute_slice(split, start, stop, len(data.label_B))
    return dataclasses.replace(
        data, image_BHWC=data.image_BHWC[cut], label_B=data.label_B[cut]
    )


def _parse_split(split: str) -> tuple[str, str | None, str | None]:
    """Take `"train[10%:20%]"` apart into `("train", "10%", "20%")`."""
    match = _SPLIT.fullmatch(split)
    if match is None or (split.endswith("]") and match[2] is None and match[3] is None):
        raise ValueError(
            f"split {split!r} is not understood; allowed: a name such as 'train', or "
            "one slice of it: 'train[:90%]', 'train[55000:]', 'train[10%:20%]'"
        )
    base, start, stop = match.groups()
    if start and stop and start.endswith("%") != stop.endswith("%"):
        raise ValueError(
            f"split {split!r} mixes percent and absolute; allowed: one of the two"
        )
    return base, start, stop


def _absolute_slice(
    split: str, start: str | None, stop: str | None, size: int
) -> slice:
    """Turn the bounds of a slice into indices of a split of `size` examples."""

    def index(bound: str) -> int:
        if bound.endswith("%"):
            return round(float(bound[:-1]) * size / 100.0)
        return int(bound)

    first = 0 if start is None else index(start)
    last = size if stop is None else index(stop)
    if max(abs(first), abs(last)) > size:
        raise ValueError(
            f"split {split!r} reaches beyond the {size} examples that there are"
        )
    cut = slice(first, last)
    if not range(size)[cut]:
        raise ValueError(
            f"split {split!r} is empty: it selects none of {size} examples"
        )
    return cut


def _check_split_name(base: str, known: Iterable[str], name: str) -> None:
    if base not in known:
        raise ValueError(
            f"dataset {name!r} has no split {base!r}; it has: {', '.join(known)}"
        )


def _load_digits(base: str) -> Split:
    """Load scikit-learn's 8x8 digits, cut into train and test once and for all."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _check_split_name(base, ("train", "test"), "digits")
    pixels_BD, label_B = load_digits(return_X_y=True)
    image_BHWC = np.rint(pixels_BD * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = train_test_split(
        np.arange(len(label_B)), test_size=360, stratify=label_B, random_state=0
    )
    index_B = train if base == "train" else test
    names = tuple(str(digit) for digit in range(10))
    return Split(image_BHWC[index_B], label_B[index_B].astype(np.int32), 10, names)


def _load_tfds(
    name: str, base: str, *, data_dir: str | None, manual_dir: str | None
) -> Split:
    """Load a whole base split: from the cache, else from the prepared set."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in root:
        raise ValueError(
            f"data_dir {root!r} is not a local folder; copy the prepared set here"
        )
    root = pathlib.Path(root).expanduser()
    manual = pathlib.Path(manual_dir).expanduser() if manual_dir else None
    if manual is not None and not manual.is_dir():
        raise ValueError(
            f"manual_dir {str(manual)!r} is not a folder; expected the archives there"
        )
    folder = _find_prepared(name, root) or _prepare(name, root, manual)
    cache = _cache_path(folder, base)
    data = _read_cache(cache)
    if data is None:
        data = _read_prepared(folder, base)
        _write_cache(cache, data)
    return data


def _find_prepared(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """Find the newest prepared version of a set, without the cost of importing TFDS."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"dataset {name!r} is not a name; allowed: 'digits', or a TFDS image-"
            "classification set as 'dataset', 'dataset/config' or 'dataset:1.2.3'"
        )
    dataset, config, wanted = match.groups()
    folder = root / dataset
    config = config or _default_config(folder)
    if config:
        folder = folder / config
    found = [
        path.parent
        for path in folder.glob(f"{wanted or '*'}/dataset_info.json")
        if _VERSION.fullmatch(path.parent.name)
    ]
    return max(
        found, key=lambda path: tuple(map(int, path.name.split("."))), default=None
    )


def _default_config(folder: pathlib.Path) -> str | None:
    """Read which config TFDS noted as the default one, if the set has configs."""
    try:
        metadata = json.loads((folder / ".config" / "metadata.json").read_text())
    except (OSError, ValueError):
        return None
    return metadata.get("default_config_name")


def _prepare(
    name: str, root: pathlib.Path, manual: pathlib.Path | None
) -> pathlib.Path:
    """Let TFDS download and prepare a set, and return the folder it is in."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    builder = _tfds_builder(name, root)
    folder = pathlib.Path(builder.data_dir)
    if (folder / "dataset_info.json").is_file():
        return folder  # TFDS itself knew the default config or the name's spelling.
    _image_and_label_keys(builder)  # Refuse a text set before it is downloaded.
    _import_tensorflow(
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
        raise ValueError(f"{what} {expected[2:]}; {found[2:]}") from error
    except AssertionError as error:  # Archives that only a registered user can get.
        raise ValueError(
            f"dataset {name!r} needs --config.dataset.manual_dir=FOLDER. {error}"
        ) from error
    except OSError as error:
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
            configs = ", ".join(tfds.builder_cls(dataset).builder_configs) or "none"
            raise ValueError(
                f"dataset {name!r}: TFDS has {dataset!r}, but not in this config or "
                f"version; its configs: {configs}"
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
    tfds.disable_progress_bar()
    builder.data_dir_root.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=builder.data_dir_root) as extract_dir,
        temporary_assignment(downloader, "MAX_RETRIES", 3),
        temporary_assignment(downloader, "_open_url", open_url),
        contextlib.redirect_stdout(io.StringIO()),
        _warnings_not_logged(),
    ):
        config = tfds.download.DownloadConfig(
            manual_dir=manual,
            # By default TFDS keeps what it extracted and reuses it by the archive's
            # name alone, but MNIST's and Fashion-MNIST's archives have equal names.
            extract_dir=extract_dir,
            try_download_gcs=False,
        )
        builder.download_and_prepare(file_format="array_record", download_config=config)


@contextlib.contextmanager
def _warnings_not_logged() -> Iterator[None]:
    """Mute logged warnings: each retry of a download would print one."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


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


def _import_tensorflow(purpose: str) -> Any:
    """Import TensorFlow, and keep it from taking the accelerators' memory."""
    # Read once, at the first import: only errors of its C++ part are worth printing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf  # type: ignore
    except ImportError as error:
        raise ValueError(
            f'{purpose} needs TensorFlow: pip install "vit-resnet-jax[prepare]"'
        ) from error
    with contextlib.suppress(RuntimeError):  # Raised if somebody else uses it already.
        tf.config.set_visible_devices([], "GPU")
    return tf


def _image_and_label_keys(builder: Any) -> tuple[str, str]:
    """Find out which features are the image and the label."""
    import tensorflow_datasets as tfds

    info = builder.info
    keys = info.supervised_keys
    if keys and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (info.features[key] for key in keys)
        if (
            isinstance(image, tfds.features.Image)
            and image.np_dtype == np.uint8
            and image.shape[-1] in (1, 3)  # type: ignore
            and isinstance(label, tfds.features.ClassLabel)
        ):
            return keys
    raise ValueError(
        f"dataset {info.full_name!r} is not an image-classification set: expected a "
        "uint8 Image with 1 or 3 channels and a ClassLabel as its supervised keys, "
        f"which are {keys}"
    )


def _read_prepared(folder: pathlib.Path, base: str) -> Split:
    """Read and decode a whole base split of a prepared set."""
    import tensorflow_datasets as tfds
    from google.protobuf import json_format, message

    try:
        builder = tfds.builder_from_directory(folder)
        _check_split_name(base, builder.info.splits, builder.info.full_name)
        return _decode_split(builder, base)
    except (
        RuntimeError,  # What array_record raises for a shard that it can't read.
        IndexError,  # For a record that it can't read it may return an empty one.
        OSError,
        json.JSONDecodeError,
        json_format.Error,
        message.DecodeError,
    ) as error:
        raise ValueError(
            f"the prepared dataset in {folder} is damaged; delete that folder and "
            f"prepare or copy it again ({' '.join(str(error).split())})"
        ) from error


def _decode_split(builder: Any, base: str) -> Split:
    """Decode the images of a split into one array."""
    info = builder.info
    keys = _image_and_label_keys(builder)
    image_feature, label_feature = (info.features[key] for key in keys)
    num_examples = info.splits[base].num_examples
    num_classes = label_feature.num_classes
    image_BHWC = np.empty((0,), np.uint8)
    label_B = np.full(num_examples, -1, np.int32)
    count = 0
    for encoded, label in _examples(builder, base, keys):
        image_HWC = _decode_image(encoded, image_feature.shape[-1])
        if count == 0:
            image_BHWC = np.empty((num_examples, *image_HWC.shape), np.uint8)
        if image_HWC.shape != image_BHWC.shape[1:]:
            raise ValueError(
                f"dataset {info.full_name!r} has images of differing sizes, such as "
                f"{image_BHWC.shape[1:]} and {image_HWC.shape}; expected one size"
            )
        image_BHWC[count], label_B[count] = image_HWC, label
        count += 1
    if count != num_examples:
        raise RuntimeError(f"{count} of {num_examples} examples found")
    if np.any((label_B < 0) | (label_B >= num_classes)):
        raise ValueError(
            f"split {base!r} of dataset {info.full_name!r} has examples without a "
            f"label: expected 0 to {num_classes - 1}, got {label_B.min()} to "
            f"{label_B.max()}"
        )
    return Split(image_BHWC, label_B, num_classes, tuple(label_feature.names))


def _decode_image(encoded: bytes, channels: int) -> np.ndarray:
    """Decode a PNG or JPEG image to uint8 HWC; three channels are RGB."""
    import cv2

    # Otherwise the EXIF tag of a photo would turn it, which TFDS doesn't do either.
    colour = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    flags = colour | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if image is None:
        raise RuntimeError("an image is neither PNG nor JPEG")
    return image.reshape(*image.shape[:2], channels)


def _examples(
    builder: Any, base: str, keys: tuple[str, str]
) -> Iterator[tuple[bytes, int]]:
    """Read the encoded images and their labels, in the order of the files."""
    file_format = builder.info.file_format.value
    if file_format == "array_record":
        return _array_record_examples(builder, base, keys)
    if file_format == "tfrecord":
        return _tfrecord_examples(builder, base, keys)
    raise ValueError(
        f"the dataset in {builder.data_dir} is prepared as {file_format!r}; "
        "allowed: 'array_record' or 'tfrecord'"
    )


def _array_record_examples(
    builder: Any, base: str, keys: tuple[str, str]
) -> Iterator[tuple[bytes, int]]:
    from tensorflow_datasets.core import decode
    from tensorflow_datasets.proto import tf_example_pb2

    # TFDS's own deserialiser would take ten times as long as these few lines.
    example_class: Any = tf_example_pb2.Example  # type: ignore
    raw = decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(base, deserialize_method=raw)
    for start in range(0, len(source), _RECORDS_PER_READ):
        stop = min(start + _RECORDS_PER_READ, len(source))
        for record in source.__getitems__(range(start, stop)):
            feature = example_class.FromString(record).features.feature
            image, label = (feature[key] for key in keys)
            yield image.bytes_list.value[0], label.int64_list.value[0]


def _tfrecord_examples(
    builder: Any, base: str, keys: tuple[str, str]
) -> Iterator[tuple[bytes, int]]:
    import tensorflow_datasets as tfds

    tf = _import_tensorflow(
        f"the dataset in {builder.data_dir} is prepared as 'tfrecord' (prepare it as "
        "'array_record' to do without TensorFlow); reading it"
    )
    image_key, label_key = keys
    decoders = tfds.decode.PartialDecoding(
        {image_key: True, label_key: True},
        decoders={image_key: tfds.decode.SkipDecoding()},
    )
    # One shard after the other: the order in which array_record is read, too.
    read_config = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=base, decoders=decoders, read_config=read_config)
    try:
        for example in dataset.as_numpy_iterator():
            yield example[image_key], int(example[label_key])
    except tf.errors.OpError as error:
        raise RuntimeError(error.message) from error


def _cache_path(folder: pathlib.Path, base: str) -> pathlib.Path:
    """Name the cache file of a base split after all that its content depends on."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files
    ]
    source = json.dumps([_CACHE_FORMAT, str(folder.resolve()), stats, base])
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    label = "-".join([*folder.parts[-2:], base])
    return root / "vit-resnet-jax" / f"{label}-{key}.npz"


def _read_cache(path: pathlib.Path) -> Split | None:
    """Read a cached split; None if there is none, or none that can be read."""
    try:
        # np.load would leave the file open if it finds that it can't read it.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            image_BHWC, label_B = arrays["image"], arrays["label"]
            names = tuple(arrays["class_names"].tolist())
    except FileNotFoundError:
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,  # What zipfile raises for features it doesn't know.
        zipfile.BadZipFile,
    ) as error:
        _log.warning("rebuilding the unreadable cache %s (%s)", path, error)
        return None
    return Split(image_BHWC, label_B, len(names), names)


def _write_cache(path: pathlib.Path, data: Split) -> None:
    """Cache a split for the next start; all or nothing, and never fatal."""
    names = np.array(data.class_names)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            file = pathlib.Path(scratch) / path.name
            np.savez(file, image=data.image_BHWC, label=data.label_B, class_names=names)
            os.replace(file, path)
    except OSError as error:
        _log.warning("no cache written, the next start will be slower: %s", error)
