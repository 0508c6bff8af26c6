"""Streamed sets: the order, batches and results of a set in memory."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests.train.test_faults import read_state
from tests.train.test_folder import write
from tests.train.test_processes import CONFIG, SIMPLE, results, start_two
from tests.train.tiny import TINY, make_tiny, tiny_config, train_tiny
from train_jax import data
from train_jax.config.config import load_config
from train_jax.data.folder import PictureFiles
from train_jax.data.loader import Batches, LoaderError, load_batches
from train_jax.data.streamed import random_resized_crop
from train_jax.devices import memory, sharding
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.run import setup
from train_jax.run.experiment import train_and_evaluate
from train_jax.run.failures import Failed, Stopped
from train_jax.run.feed import StepIndices
from train_jax.run.setup import set_up


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_device():
    """Let there be a single device: only there are results the same in all bits."""
    with pytest.MonkeyPatch.context() as patch:
        device = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: device)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 90 pictures of two classes, in colours and of many sizes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(90):
        shape = (*rng.integers(8, 20, 2), 3)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        write(root, [f"{'ab'[number % 2]}/{number:02}.png"], image)
    return root


def fields(photos, **more):
    """Fields of a training on the photos, of 11 steps of which 5 are an epoch."""
    return {
        "dataset.name": f"folder:{photos}",
        "dataset.image_size": 8,
        "dataset.train_split": "train[:40]",
        "dataset.val_split": "train[40:50]",
        "dataset.test_split": "test",
        "batch_size": 8,
        "num_steps": 11,
    } | more


@pytest.fixture(scope="module")
def in_memory(photos, one_device, tmp_path_factory):
    """The results and the last state of a run in memory."""
    return train(photos, tmp_path_factory.mktemp("memory") / "run")


def last_step(workdir):
    """The step of the newest checkpoint."""
    step = checkpoint.find(workdir / wd.CHECKPOINTS, "last")
    assert step is not None
    return step


def train(photos, workdir, *, has_plots=False, **more):
    """Train on the photos; return the results and the last state, by name."""
    summary = train_tiny(workdir, fields(photos, **more), has_plots=has_plots)
    state = read_state(workdir / wd.CHECKPOINTS, last_step(workdir))
    return (summary["test_loss"], results(workdir)), state


def assert_same(found, expected):
    """Assert that results and states are the same, bit for bit."""
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, array in expected[1].items():
        np.testing.assert_array_equal(found[1][name], array, err_msg=name)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_run_is_that_of_the_set_in_memory(
    photos, in_memory, tmp_path, workers
):
    how = {"dataset.streaming": True, "dataset.num_workers": workers}
    has_plots = workers == 0  # with workers they would be the same
    found = train(photos, tmp_path / "run", has_plots=has_plots, **how)
    assert_same(found, in_memory)
    if has_plots:
        assert (tmp_path / "run" / wd.PLOTS / "misclassified.png").exists()


def test_a_stopped_run_goes_on_with_another_number_of_workers(
    photos, in_memory, tmp_path
):
    how = {"dataset.streaming": True, "dataset.num_workers": 1}
    config = tiny_config(fields(photos, **how, **{"checkpoint.every_steps": 3}))
    calls = iter([False, False, True])
    with pytest.raises(Stopped):
        train_and_evaluate(
            config, tmp_path / "run", should_stop=lambda: next(calls, True)
        )
    assert 0 < last_step(tmp_path / "run") < 11
    how |= {"dataset.num_workers": 0, "checkpoint.every_steps": 3}
    assert_same(train(photos, tmp_path / "run", **how), in_memory)


@pytest.mark.slow  # two processes
def test_two_processes_load_the_batches_of_one(photos, tmp_path, monkeypatch):
    # Nobody looks at plots, or at the table of layers.
    for name in ("_plot", "print_layers"):
        monkeypatch.setattr(f"train_jax.run.experiment.{name}", lambda *_: None)
    changes = SIMPLE | fields(photos, **{"dataset.streaming": True})
    outputs, both = start_two(tmp_path / "two", tmp_path, changes)
    texts = {field: str(value) for field, value in (TINY | changes).items()}
    train_and_evaluate(load_config(CONFIG, texts), tmp_path / "one")
    assert [p.wait() for p in both] == [0, 0], [x.read_text() for x in outputs]
    found, expected = results(tmp_path / "two"), results(tmp_path / "one")
    for line, expected_line in zip(found, expected, strict=True):
        for name, value in expected_line.items():
            np.testing.assert_allclose(line[name], value, rtol=1e-5, err_msg=name)


def test_images_of_any_size_are_brought_to_one(photos):
    how = {"image_size": 8}
    name = f"folder:{photos}"
    (expected,) = data.load_splits(name, "train", **how)
    (streamed,) = data.load_splits(name, "train", **how, room=0)
    assert streamed.image_BHWC.shape == expected.image_BHWC.shape
    np.testing.assert_array_equal(streamed.image_BHWC, expected.image_BHWC)


def test_images_of_different_sizes_need_a_size(photos):
    (streamed,) = data.load_splits(f"folder:{photos}", "train", room=0)
    with pytest.raises(ValueError, match="image_size must be given for images of"):
        np.asarray(streamed.image_BHWC)


def test_splits_of_different_sizes_are_noticed_before_training(tmp_path):
    for split, side in (("train", 8), ("test", 12)):
        for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
            write(tmp_path, [f"{split}/{name}"], np.zeros((side, side, 3), np.uint8))
    changes = {"dataset.name": f"folder:{tmp_path}", "dataset.streaming": True}
    changes |= {"dataset.train_split": "train", "dataset.val_split": None}
    config = tiny_config(changes | {"batch_size": 8, "dataset.test_split": "test"})
    with pytest.raises(ValueError, match=r"image_size must be given, .* \(12, 12, 3\)"):
        set_up(config)


@pytest.mark.parametrize("field", ["val_split", "test_split"])
def test_a_split_without_labels_is_noticed_before_training(photos, monkeypatch, field):
    changes = {"dataset.test_split": "train[50:60]", "dataset.streaming": True}
    changes[f"dataset.{field}"] = "test"
    read_label = PictureFiles.read_label

    def read(self, place):
        return -1 if len(self._names) < 30 else read_label(self, place)

    monkeypatch.setattr(PictureFiles, "read_label", read)
    with pytest.raises(ValueError, match="examples without a label"):
        set_up(tiny_config(fields(photos, **changes)))


WORKERS = """
import multiprocessing, time
import numpy as np
from train_jax.data.loader import Batches, load_batches

class Slow:
    def __call__(self, number):
        time.sleep(0.2)
        return np.arange(4)

if __name__ == "__main__":
    loading = load_batches(Batches([np.arange(8)], Slow(), 1000), num_workers=2)
    next(loading)
    print(*(it.pid for it in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        workers = [int(pid) for pid in output.readline().split()]
    assert len(workers) == 2 and all(map(is_running, workers))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid):
    """Whether there is a process that has not ended."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def test_what_does_not_fit_into_memory_is_streamed(photos, monkeypatch):
    config = tiny_config(fields(photos))
    num_bytes = 90 * 8 * 8 * 3
    for room, expected in ((num_bytes, False), (num_bytes - 1, True)):
        monkeypatch.setattr(
            "train_jax.run.splits.room_for_data", lambda room=room: room
        )
        assert set_up(config).train.is_streamed == expected
    crops = fields(photos, **{"augment.crop_area": (0.1, 1.0)})
    monkeypatch.undo()
    assert set_up(tiny_config(crops)).train.is_streamed


def test_a_training_that_lacks_memory_is_warned_of(monkeypatch, capsys):
    parts = make_tiny({"batch_size": 32})
    parts.trainer.compile(parts.abstract_state)
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(memory, "_free_on_host", lambda: 1e3)
    parts = make_tiny({"batch_size": 16})
    parts.trainer.compile(parts.abstract_state)
    (line,) = capsys.readouterr().err.splitlines()
    assert "warning: a training step needs about" in line
    assert "0.0 GiB are free; a smaller config.dataset.image_size" in line


def test_the_room_for_data_is_a_share_of_what_is_free():
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.room_for_data() < free


@pytest.mark.parametrize(("others", "share"), [(["here", "here"], 3), (["b", "c"], 1)])
def test_processes_share_the_memory_of_their_machine(monkeypatch, others, share):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(memory.platform, "node", lambda: "here")
    monkeypatch.setattr(memory, "_free_on_host", lambda: 600.0)
    monkeypatch.setattr(memory, "free_in_cgroups", lambda: 700.0)

    def gather(x):
        if x.dtype == np.uint32:  # which machine it is
            others_P = [zlib.crc32(name.encode()) for name in others]
            return np.array([x, *others_P], np.uint32)
        return np.array([x, x, x])

    monkeypatch.setattr(memory.multihost_utils, "process_allgather", gather)
    assert memory.room_for_data() == pytest.approx(memory.SHARE * 600 / share)


def test_crops_depend_on_seed_step_and_example_alone(photos):
    name = f"folder:{photos}"
    (split,) = data.load_splits(name, "train", image_size=8, room=0)

    def batch(step, indices, seed=0):
        batches = Batches(
            split.examples,
            lambda _: np.array(indices),
            9,
            crop_area=(0.1, 0.9),
            seed=[seed],
        )
        return batches[step][0]

    first = batch(2, [5, 7, 9])
    np.testing.assert_array_equal(batch(2, [9, 5])[1], first[0])
    assert (batch(3, [5])[0] != first[0]).any()
    assert (batch(2, [5], seed=1)[0] != first[0]).any()


def test_a_random_crop_has_the_area_and_proportions_that_are_asked_for():
    image, rng = np.zeros((90, 120, 3), np.uint8), np.random.default_rng(0)
    image[..., 0], image[..., 1] = np.mgrid[:90, :120]
    shares, ratios = [], []
    for _ in range(2000):
        crop = random_resized_crop(image, rng, area=(0.2, 0.6))
        height, width, _ = crop.shape
        top, left = crop[0, 0, :2]
        np.testing.assert_array_equal(
            crop, image[top : top + height, left : left + width]
        )
        shares.append(height * width / (90 * 120))
        ratios.append(width / height)
    # Of a uniform distribution; one in fifty is off, as sides are whole pixels.
    assert abs(np.mean(shares) - 0.4) < 0.01
    assert abs(np.std(shares) - 0.4 / 12**0.5) < 0.01
    assert min(shares) > 0.19 and max(shares) < 0.62
    assert abs(np.mean(np.log(ratios))) < 0.02
    assert min(ratios) > 0.72 and max(ratios) < 1.38


@pytest.mark.parametrize(
    ("shape", "expected"), [((8, 400), (8, 11)), ((400, 9), (12, 9))]
)
def test_of_a_very_long_image_the_middle_is_taken(shape, expected):
    image = np.broadcast_to(np.arange(shape[1])[None, :, None], (*shape, 1))
    crop = random_resized_crop(image, np.random.default_rng(0), area=(1.0, 1.0))
    assert crop.shape[:2] == expected
    assert crop[0, 0, 0] == (shape[1] - expected[1]) // 2


def test_a_damaged_picture_ends_the_run_with_its_name(photos, tmp_path, monkeypatch):
    # Those that are measured before the training are found then.
    monkeypatch.setattr("train_jax.run.task._NUM_MEASURED", 1)
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    config = tiny_config(
        fields(root, **{"dataset.streaming": True, "checkpoint.every_steps": 1})
    )
    parts = set_up(config)
    # The first picture of the third batch.
    place = parts.trainer.feed._batches._indices_of(2)[0]  # type: ignore
    name = parts.train.image_BHWC.source._names[place]  # type: ignore
    (root / name).write_bytes(b"")
    with pytest.raises(Failed) as error:
        train_and_evaluate(config, tmp_path / "run")
    assert name in str(error.value) and "is no picture" in str(error.value)
    assert "\n" not in str(error.value)
    assert last_step(tmp_path / "run") == 2


class Slow:
    """Indices that take long to look up."""

    def __call__(self, number):
        time.sleep(0.05)
        return np.arange(4)


def test_a_worker_that_is_killed_is_noticed():
    batches = Batches([np.arange(8)], Slow(), 1000)
    loading = load_batches(batches, num_workers=1)
    next(loading)
    (worker,) = children()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(LoaderError, match="terminated unexpectedly"):
        list(loading)


def test_a_worker_outlives_a_signal_to_its_group():
    """It loads on until its parent, which was sent the signal too, has stopped."""
    batches = Batches([np.arange(8)], Slow(), 1000)
    loading = load_batches(batches, num_workers=1)
    next(loading)
    (worker,) = children()
    os.kill(worker, signal.SIGTERM)
    for _ in range(8):  # more than are ready
        next(loading)
    assert children() == [worker]
    loading.close()
    assert len(children()) == 0


def children():
    """The processes that load for this one."""
    import multiprocessing

    return [it.pid for it in multiprocessing.active_children()]


def own_threads():
    """The threads of this process, but those of a pool that Grain starts and keeps."""
    pool = re.compile(r"\((worker|_handle_\w+)\)")
    return {it for it in threading.enumerate() if not pool.search(it.name)}


def test_nothing_is_left_when_loading_ends_early():
    before = own_threads()
    batches = Batches([np.arange(8)], Slow(), 1000)
    loading = load_batches(batches, num_workers=2)
    assert len(children()) == 0
    (numbers, indices) = next(loading)
    np.testing.assert_array_equal(numbers, indices)
    assert len(children()) == 2
    loading.close()
    assert len(children()) == 0
    for _ in range(100):  # threads that were told to end may take a moment
        if own_threads() <= before:
            break
        time.sleep(0.05)
    assert own_threads() <= before


def test_the_indices_of_a_step_are_those_of_the_order():
    parts = make_tiny({"dataset.streaming": False})
    key_data = np.asarray(jax.random.key_data(parts.runs.keys["order"]))
    indices_of = StepIndices(key_data, 320, 64, np.arange(10, 20))
    for step in (0, 4, 7):
        ((_, (_, order)),) = parts.trainer.feed(step, 1)
        indices = indices_of(step)
        start = step % 5 * 64
        np.testing.assert_array_equal(indices, order[start + 10 : start + 20])


def test_a_process_loads_the_rows_of_its_own_devices():
    rows_of = {0: (slice(4, 6),), 1: (slice(6, 8),), 2: (slice(4, 6),)}
    layout: Any = SimpleNamespace(addressable_devices_indices_map=lambda _: rows_of)
    np.testing.assert_array_equal(sharding.local_rows(8, layout), [4, 5, 6, 7])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset.name": "digits", "dataset.streaming": True},
            r"config\.dataset\.streaming must be 'auto' or False for dataset 'digits'",
        ),
        (
            {"dataset.streaming": True, "num_seeds": 2},
            r"config\.dataset\.streaming must be False for 2 runs in one program",
        ),
        (
            {"dataset.streaming": False, "augment.crop_area": (0.1, 1.0)},
            r"config\.augment\.crop_area needs images that are streamed",
        ),
    ],
)
def test_what_cannot_be_streamed_is_said(photos, monkeypatch, changes, message):
    if changes.get("dataset.name") != "digits":
        monkeypatch.setattr(setup, "load_dataset", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match=message):
        set_up(tiny_config(fields(photos, **changes)))


def test_pictures_are_decoded_in_several_threads_at_once(photos, monkeypatch):
    """While one waits for its file, the others go on."""
    meeting = threading.Barrier(3, timeout=30)
    opened = Image.open

    def open_together(*args, **kwargs):
        meeting.wait()
        return opened(*args, **kwargs)

    (split,) = data.load_splits(f"folder:{photos}", "train", image_size=8, room=0)
    monkeypatch.setattr("train_jax.data.picture.Image.open", open_together)
    images = split.image_BHWC.take(np.arange(3), threads=3)  # type: ignore
    assert images.shape == (3, 8, 8, 3)


@pytest.mark.tfds
def test_cifar10_streamed_has_the_metrics_of_cifar10_in_memory(one_device, tmp_path):
    common = {
        "dataset.name": "cifar10",
        # All of one split, so that the other one need not be decoded.
        "dataset.train_split": "test[:1280]",
        "dataset.val_split": "test[5120:5620]",
        "dataset.test_split": "test[5620:6120]",
        "augment.crop_padding": 4,
        "augment.flip": "random",
        "batch_size": 128,
        "num_steps": 15,  # of which 10 are an epoch
    }
    found = {}
    for streaming, workers in ((False, 0), (True, 2)):
        how = {"dataset.streaming": streaming, "dataset.num_workers": workers}
        workdir = tmp_path / f"{streaming}-{workers}"
        summary = train_tiny(workdir, common | how)
        found[workdir.name] = (summary["test_loss"], results(workdir))
    assert json.dumps(found["False-0"]) == json.dumps(found["True-2"])


def test_the_order_does_not_depend_on_the_default_kind_of_keys():
    make = functools.partial(StepIndices, np.array([0, 7], np.uint32), 10, 5)
    expected = make(np.arange(5))(1)
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(make(np.arange(5))(1), expected)
