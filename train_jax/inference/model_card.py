"""Write a model card for the Hugging Face hub: what a model is, and what it reached."""

from typing import Any

from train_jax import data
from train_jax.config.fields import DatasetConfig
from train_jax.learning.state import count_parameters
from train_jax.run.trained_model import TrainedModel, require_images
from weight_files.extras import import_extra

_TEXT = """\
# {name} trained on {dataset}

An image classifier with {parameters:,} parameters for {num_classes} classes, {origin} \
vit-resnet-jax.

- input: {height} × {width} pixels, {channels}
- normalisation: mean {mean}, standard deviation {std}, of pixels in [0, 1]
- classes: {classes}

## Results

{results}

## Use

```python
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")
print(classify("picture.png"))
```
"""


def describe_data(dataset: DatasetConfig | None) -> tuple[str, str, str | None]:
    """Name the training's data set, its test split, and the set on the hub, if any.

    The hub has sets of the names of TFDS; where a folder lies is nobody's business.
    """
    if dataset is None:
        return "an unknown data set", "", None
    if data.is_folder(dataset.name):
        return "a folder of pictures", dataset.test_split, None
    if data.is_in_memory(dataset.name):
        return dataset.name, dataset.test_split, None
    name = dataset.name.partition(":")[0].partition("/")[0]
    return name, dataset.test_split, name


def make_card(trained: TrainedModel, summary: dict[str, Any]) -> str:
    """Make the text of a model card.

    Args:
        trained: the model.
        summary: of its run; nothing if that isn't known.

    Raises:
        ValueError: if pyyaml, of the extra [hub], is not installed.
    """
    yaml = import_extra("yaml", "a model card needs", "vit-resnet-jax[hub]")
    task = require_images(trained)
    dataset, split, hub_name = describe_data(trained.dataset)
    height, width, num_channels = task.image_shape
    accuracy = summary.get("test_accuracy")
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "jax"],
    }
    results = "Not measured."
    if accuracy is not None and trained.dataset is not None:
        results = (
            f"{accuracy:.2%} of the split {split!r} of {dataset} are classified "
            f"correctly, after {summary['test_step']:,} training steps."
        )
    if accuracy is not None and hub_name is not None:
        metric = {"type": "accuracy", "value": round(accuracy, 4), "name": "accuracy"}
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": hub_name, "name": hub_name, "split": split},
            "metrics": [metric],
        }
        header["datasets"] = [hub_name]
        header["model-index"] = [{"name": trained.name, "results": [result]}]
    text = _TEXT.format(
        name=trained.name,
        origin="converted by" if trained.dataset is None else "trained with",
        dataset=dataset,
        parameters=count_parameters(trained.variables["params"]),
        num_classes=task.num_classes,
        height=height,
        width=width,
        channels="grey, given as RGB" if num_channels == 1 else "RGB",
        mean=", ".join(f"{value:.4g}" for value in task.mean),
        std=", ".join(f"{value:.4g}" for value in task.std),
        classes=", ".join(task.class_names[:20])
        + (" and others" if task.num_classes > 20 else ""),
        results=results,
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{text}"
