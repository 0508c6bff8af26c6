"""What runs in a store have in common: where they lie, what they leave."""

import re

from tests.train.store import fake_gcs
from train_jax.storage import store as stores

BUCKET = f"gs://{fake_gcs.BUCKET}"
CHANGES = {"num_epochs": 6, "checkpoint.every_epochs": 1, "model.dropout_rate": 0.1}

# Names that hold a time or a checksum.
VARIABLE = r"/(d/[0-9a-f]{32}|events.*)$"
COMMITTED = "commit_success.txt"


def list_names(workdir):
    """The names of a run's files, without what varies and what marks a save's end."""
    names = [str(x.relative_to(workdir)) for x in stores.list_files(workdir)]
    return sorted({re.sub(VARIABLE, "", x) for x in names if COMMITTED not in x})
