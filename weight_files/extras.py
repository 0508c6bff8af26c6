"""Import a library of an extra, which need not be installed."""

import importlib
from typing import Any


def import_extra(module: str, purpose: str, package: str) -> Any:
    """Import a module that only some purposes need.

    Args:
        module: its name.
        purpose: what needs it, such as "the demo needs"; the error begins with it.
        package: what pip installs for it, such as "vit-resnet-jax[demo]".

    Raises:
        ValueError: if it is not installed; it says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ValueError(f'{purpose} {library}: pip install "{package}"') from error
