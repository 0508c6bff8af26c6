"""A folder of pictures as a data set: layouts, order, sizes, and wrong folders."""

import os
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.train.tiny import tiny_config, train_tiny
from train_jax import data
from train_jax.data.folder import load_folder
from train_jax.data.pictures import find_pictures
from train_jax.data.resize import resize_image
from train_jax.run import splits

PICTURE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(root, names, image=PICTURE):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits as PNG files: train/CLASS/ and test/CLASS/."""
    root = tmp_path_factory.mktemp("digits")
    for name in ("train", "test"):
        split = data.load("digits", name)
        for i, (image, label) in enumerate(zip(*split.examples, strict=True)):
            folder = root / name / split.class_names[label]
            write(folder, [f"{i:04}.png"], image[..., 0])
    return root


def multiset(split):
    """Sort the examples, each a row of its pixels and its label."""
    rows = split.image_BHWC.reshape(len(split), -1)
    rows = np.concatenate([rows, split.label_B[:, None]], axis=1)
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_folder_holds_the_same_examples_as_the_set(digits, name):
    expected, found = data.load("digits", name), data.load(f"folder:{digits}", name)
    assert found.class_names == expected.class_names
    assert found.image_BHWC.shape == expected.image_BHWC.shape
    np.testing.assert_array_equal(multiset(found), multiset(expected))
    again = data.load(f"folder:{digits}", name)  # from the cache
    np.testing.assert_array_equal(again.image_BHWC, found.image_BHWC)


def test_any_slice_has_its_share_of_each_class(digits):
    train = data.load(f"folder:{digits}", "train")
    whole = np.bincount(train.label_B) / len(train)
    for cut in (slice(100), slice(500, 700)):
        count = len(train.label_B[cut])
        share = np.bincount(train.label_B[cut], minlength=10) - whole * count
        assert np.abs(share).max() <= 2


def test_a_folder_trains_to_the_same_metrics(digits, tmp_path, monkeypatch):
    """In one order, and with the same mean and deviation, to the same bits."""
    load, metrics = splits.load_named_splits, {}

    def load_sorted(*args, **how):
        for split in (loaded := load(*args, **how)):
            order = np.lexsort(split.image_BHWC.reshape(len(split), -1).T)
            split.image_BHWC[:], split.label_B[:] = (x[order] for x in split.examples)
        return loaded

    monkeypatch.setattr(splits, "load_named_splits", load_sorted)
    for name in ("digits", f"folder:{digits}"):
        fields = {"dataset.name": name, "dataset.mean": (0.3,), "dataset.std": (0.4,)}
        fields |= {
            "dataset.train_split": "train",
            "dataset.val_split": None,
            "dataset.test_split": "test",
            "num_steps": 5,
        }
        workdir = tmp_path / str(len(metrics))
        summary = train_tiny(workdir, fields)
        metrics[name] = summary["test_loss"], summary["test_accuracy"]
    a, b = metrics.values()
    assert a == b


def test_mean_and_deviation_are_those_of_the_training_split(digits):
    from train_jax.run.task import make_task

    config = tiny_config({"dataset.name": f"folder:{digits}"})
    train = data.load(f"folder:{digits}", "train[:320]")
    task = make_task(config.dataset, config.augment, train)
    pixels = train.image_BHWC / 255
    np.testing.assert_allclose(task.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(task.std, pixels.std(axis=(0, 1, 2)), rtol=1e-9)


def test_classes_alone_are_split(tmp_path):
    write(tmp_path, [f"{name}/{i}.png" for name in "ab" for i in range(20)])
    train, test = load_folder(tmp_path, "train", "test")
    assert np.bincount(train.label_B).tolist() == [18, 18]
    assert np.bincount(test.label_B).tolist() == [2, 2]
    assert train.class_names == ("a", "b")


def test_the_order_of_a_folder_has_a_number(tmp_path):
    root = tmp_path / "root"
    write(root, [f"{name}/{i}.png" for name in "ab" for i in range(20)])

    def order(root=root, **how):
        (split,) = load_folder(root, "train", **how)
        return split[:3].files_checksum

    first = order()
    assert first is not None and order(room=0) == first
    assert order(split_seed=1) != first
    assert order(shutil.copytree(root, tmp_path / "Füße" / "a copy")) == first
    (root / "a" / "3.png").rename(root / "b" / "99.png")
    assert order() != first


def test_the_seed_chooses_the_order(tmp_path):
    for i in range(20):
        for name in "ab":
            write(tmp_path, [f"{name}/{i}.png"], PICTURE + i)
    orders = [load_folder(tmp_path, "train", split_seed=seed)[0] for seed in (0, 0, 1)]
    a, b, c = (split.image_BHWC[:, 0, 0, 0].tolist() for split in orders)
    assert a == b != c


@pytest.mark.parametrize(
    ("resize", "corner"), [("crop", 9), ("pad", 0), ("stretch", 9)]
)
def test_pictures_of_other_sizes_are_resized(resize, corner, tmp_path):
    write(tmp_path, [f"{name}/{i}.png" for name in "ab" for i in range(10)])
    wide = np.full((5, 11, 3), 9, np.uint8)
    write(tmp_path, [f"{name}/w{i}.jpg" for name in "ab" for i in range(5)], wide)
    (split,) = load_folder(tmp_path, "train", image_size=6, resize=resize)
    assert split.image_BHWC.shape[1:] == (6, 6, 3)
    corners = split.image_BHWC[:, 0, 0, 0]
    assert np.isin(corners, [PICTURE[0, 0, 0], corner, *range(9)]).all()
    assert (corners == corner).sum() >= 8
    with pytest.raises(ValueError, match=r"image_size must be given for pictures of"):
        load_folder(tmp_path, "train")


def test_a_folder_is_loaded_at_a_size(tmp_path):
    write(tmp_path, ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"])
    write(tmp_path, ["train/b/2.png"], PICTURE[:2])
    split = data.load(f"folder:{tmp_path}", "train", image_size=3, resize="pad")
    assert split.image_BHWC.shape == (3, 3, 3, 3)
    assert sum(not x[-1].any() for x in split.image_BHWC) == 1  # has a frame


def test_every_set_can_be_resized():
    (split,) = data.load_splits("digits", "test", image_size=12)
    assert split.image_BHWC.shape == (360, 12, 12, 1)
    with pytest.raises(ValueError, match="image_size must be None for a set without"):
        data.load_splits("reverse", "test", image_size=12)


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (224, 224), (300, 1000)])
@pytest.mark.parametrize("fraction", [1.0, 0.9, 0.875, 224 / 248])
def test_a_picture_is_cropped_as_by_torchvision(shape, fraction):
    """By the formulas of its `Resize` and `CenterCrop`, with timm's size."""
    image_HWC = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    shorter = {1.0: 224, 0.9: 248, 0.875: 256, 224 / 248: 248}[fraction]
    longer = int(shorter * max(shape) / min(shape))
    height, width = (shorter, longer) if shape[0] <= shape[1] else (longer, shorter)
    resized = Image.fromarray(image_HWC).resize((width, height), Image.BILINEAR)
    top, left = (round((side - 224) / 2) for side in (height, width))
    expected = np.asarray(resized)[top : top + 224, left : left + 224]
    actual = resize_image(image_HWC, (224, 224), crop_fraction=fraction)
    np.testing.assert_array_equal(actual, expected)


def test_a_stretched_picture_is_cropped():
    image_HWC = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    resized = Image.fromarray(image_HWC).resize((20, 16), Image.BILINEAR)
    actual = resize_image(image_HWC, (8, 10), how="stretch", crop_fraction=0.5)
    np.testing.assert_array_equal(actual, np.asarray(resized)[4:12, 5:15])


def test_a_thin_picture_is_resized_without_its_whole_length():
    thin = np.full((1, 20_000, 3), 7, np.uint8)
    tracemalloc.start()
    cut = resize_image(thin, (64, 64), crop_fraction=0.875)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cut.shape == (64, 64, 3) and (cut == 7).all()
    assert cut.base is None  # that would be the whole
    assert peak < 2**20


def test_linked_folders_and_other_suffixes_are_found(tmp_path):
    write(tmp_path, [f"a/{i}.png" for i in range(4)])
    write(tmp_path, [f"other/{i}.png" for i in range(3)])
    (tmp_path / "a" / "more").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "folder.jpg").mkdir()
    for suffix in (".jfif", ".pbm", ".J2K"):
        (tmp_path / "a" / f"x{suffix}").write_bytes(b"")
    found = find_pictures([tmp_path / "a"])
    assert len(found) == 4 + 3 + 3
    assert found == sorted(found)


def test_a_class_whose_name_is_not_utf_8_is_refused(tmp_path):
    write(tmp_path, [f"{name}/{i}.png" for name in "ab" for i in range(10)])
    os.rename(tmp_path / "b", os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    with pytest.raises(ValueError, match=r"the name of class 'caf.udce9' in .* UTF-8"):
        load_folder(tmp_path, "train")


def test_other_files_and_hidden_folders_are_ignored(tmp_path):
    write(tmp_path, [f"{name}/deep/{i}.png" for name in "ab" for i in range(10)])
    (tmp_path / ".git").mkdir()
    write(tmp_path, ["a/.thumbnails/1.png", "b/deep/.cache/deeper/2.png"])
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "._1.png").write_text("of a Mac")
    assert len(load_folder(tmp_path, "train")[0]) == 18


def _two_classes(root):
    write(root, [f"{name}/{i}.png" for name in "ab" for i in range(10)])


def _empty_class(root):
    _two_classes(root)
    (root / "c").mkdir()


def _unreadable(root):
    _two_classes(root)
    for i in (3, 4):
        (root / "a" / f"{i}.png").write_text("no picture")


def _missing_in_a_split(root):
    _two_classes(root / "train")
    write(root, ["test/a/1.png", "test/c/1.png"])


def _other_case(root):
    _two_classes(root)
    write(root, ["A/1.png"])


def _few(root):
    write(root, ["a/1.png", *(f"b/{i}.png" for i in range(30))])


def _other_sizes(root):
    _two_classes(root / "train")
    write(root / "test", ["a/1.png", "b/1.png"], np.zeros((5, 7, 3), np.uint8))


def _no_train(root):
    _two_classes(root / "val")


def _one_class(root):
    write(root, ["a/1.png"])


def _splits(root):
    _two_classes(root / "train")
    _two_classes(root / "val")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty_class, "class 'c' in '{root}' holds no picture"),
        (_unreadable, "{root}/a/"),
        (_missing_in_a_split, "split 'test' of '{root}' lacks the class 'b'"),
        (_other_case, "'A' and 'a' in '{root}' differ in upper and lower case alone"),
        (_few, "class 'a' of '{root}' has too few pictures to be in the split 'test'"),
        (_other_sizes, "image_size must be given for pictures of different sizes"),
        (_no_train, "has a folder 'val', but none called 'train'"),
        (
            _one_class,
            "'{root}' must hold a folder for each of 2 classes or more, got 1",
        ),
        (lambda root: None, "must hold a folder for each of 2 classes or more, got 0"),
        (_splits, "has no split 'test'; it has: train, val"),
    ],
)
def test_a_wrong_folder_is_one_line(make, message, tmp_path):
    if make is _other_case and os.path.exists(__file__.upper()):
        pytest.skip("the file system doesn't tell upper from lower case")
    make(tmp_path)
    with pytest.raises(ValueError) as error:
        data.load_splits(f"folder:{tmp_path}", "train", "test")
    assert message.format(root=tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        data.load(f"folder:{tmp_path}/nothing", "train")
