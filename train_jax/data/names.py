"""Parse names of datasets; spell them as TFDS does."""

import re

_NAME = re.compile(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?")


def canonical_name(name: str) -> str:
    """Spell the name of a dataset in snake case, as TFDS does: MNIST becomes mnist.

    Args:
        name: `"dataset"`, `"dataset/config"`, either with `":1.2.3"`. The config and
            the version are kept, and so is a text that is not a name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    dataset = match[1]
    # Capitals with a number are one word, which TFDS would split: CIFA_R10.
    word = re.sub(r"[A-Z]{2,}\d+(?![a-z\d])", lambda it: it[0].title(), dataset)
    word = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", word)
    word = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", word).lower()
    return word + name[len(dataset) :]


def parse_name(name: str) -> tuple[str, str | None, str | None]:
    """Parse `"cifar10/plain:1.2.3"` into `("cifar10", "plain", "1.2.3")`.

    Raises:
        ValueError: if the text is not a name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"dataset {name!r} is not a name; allowed: 'digits', 'folder:PATH', or a "
            "TFDS image-classification set as 'dataset', 'dataset/config' or "
            "'dataset:1.2.3'"
        )
    dataset, config, version = match.groups()
    return dataset, config, version
