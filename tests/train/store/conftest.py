"""Fixtures of the tests in an object store: the store, folders, a run."""

import re

import pytest
from etils import epath

from tests.train.store import fake_gcs
from tests.train.store.runs import BUCKET, CHANGES
from tests.train.tiny import train_tiny
from train_jax.output import workdir as wd
from train_jax.storage import store as stores


@pytest.fixture(scope="module")
def store():
    """A store with an empty bucket, to which the clients of this process connect."""
    # As if a path had been used before: etils.epath then keeps to TensorFlow.
    epath.Path("local").exists()
    with fake_gcs.serve() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def folder(store, request):
    """A folder of the store for a test of its own."""
    store.before_write = lambda name: None
    name = re.sub(r"\W+", "_", request.node.name)
    return stores.any_path(f"{BUCKET}/{name}", "folder")


@pytest.fixture(scope="module")
def whole(store):
    """A run that nothing happened to."""
    workdir = stores.any_path(f"{BUCKET}/whole", "folder")
    train_tiny(workdir, CHANGES, has_plots=True)
    return workdir


@pytest.fixture
def unfinished(folder, store, whole):
    """A copy of that run, without its summary."""
    source, target = (str(x).removeprefix(f"{BUCKET}/") for x in (whole, folder))
    for name in list(store.objects):
        if name.startswith(source + "/") and not name.endswith(wd.SUMMARY):
            store.put(name.replace(source, target, 1), store.objects[name], None)
    return folder
