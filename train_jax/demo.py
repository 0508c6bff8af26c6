"""Serve a demo page: draw or upload a picture, see class probabilities.

python -m train_jax.demo --workdir RUN opens the page on this machine.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from train_jax.cli import command
from train_jax.data.picture import flatten_picture
from train_jax.inference import flags
from train_jax.inference.borders import has_opposite_border
from train_jax.inference.classifier import Classifier, fit_image
from train_jax.inference.explainers import make_explainer
from train_jax.inference.model_card import describe_data
from train_jax.inference.space import write_space
from train_jax.run.trained_model import TrainedModel
from train_jax.storage.paths import local_path
from weight_files.extras import import_extra

_PROGRAM = "python -m train_jax.demo"
_CANVAS = 280  # pixels


def main(arguments: list[str]) -> int:
    """Parse the command line, and serve the page until Ctrl-C."""
    return command.run(_make_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.space is not None and options.workdir is None:
        raise ValueError("--space takes a model by --workdir, not by --weights")
    trained = flags.load_named_model(options)
    page = make_page(trained)
    if options.space is None:
        page.launch(
            server_name=options.host, server_port=options.port, share=options.share
        )
        return 0
    assert trained.step is not None
    folder = local_path(options.space, "--space")
    write_space(
        folder,
        local_path(options.workdir, "--workdir"),
        step=trained.step,
        run=options.run,
        title=f"{trained.name} on {describe_data(trained.dataset)[0]}",
    )
    print(f"put it on the hub: hf upload OWNER/NAME {folder} --repo-type space")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = flags.make_model_parser(
        _PROGRAM, "Serve a web page on which a trained model tells what it sees."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, help="port (default: a free one from 7860)")
    parser.add_argument(
        "--share",
        action="store_true",
        help="also serve it at a public address of gradio.live, as is needed on Colab",
    )
    parser.add_argument(
        "--space",
        metavar="FOLDER",
        help="write the page, the model and the code into a folder that can be "
        "uploaded as a Hugging Face Space, and serve nothing",
    )
    return parser


def make_page(trained: TrainedModel) -> Any:
    """Make the page: a canvas, the probabilities, and what the model looks at.

    Returns:
        A `gradio.Blocks`.

    Raises:
        ValueError: if gradio, of the extra [demo], is not installed, or the model
            can't be explained.
    """
    gr = import_extra("gradio", "the demo needs", "vit-resnet-jax[demo]")
    answer = functools.partial(
        _answer, Classifier(trained, batch_size=1), make_explainer(trained)
    )
    with gr.Blocks(title=trained.name, analytics_enabled=False) as page:
        gr.Markdown(f"## {trained.name}")
        with gr.Row():
            with gr.Column():
                with gr.Tab("Draw"):
                    canvas = gr.Sketchpad(
                        value=np.full((_CANVAS, _CANVAS, 3), 255, np.uint8),
                        show_label=False,
                        canvas_size=(_CANVAS, _CANVAS),
                        brush=gr.Brush(default_size=_CANVAS // 24, colors=["#000000"]),
                        layers=False,
                        elem_id="canvas",
                    )
                    ask_drawing = gr.Button("Ask", variant="primary", elem_id="ask")
                with gr.Tab("Picture"):
                    upload = gr.Image(show_label=False, image_mode="RGBA")
                    ask_picture = gr.Button("Ask", variant="primary")
            with gr.Column():
                label = gr.Label(label="classes", num_top_classes=5, elem_id="answer")
                picture = gr.Image(show_label=False)
        outputs = [label, picture]
        ask_drawing.click(lambda drawing: answer(drawing["composite"]), canvas, outputs)
        ask_picture.click(answer, upload, outputs)
    return page


def _answer(
    classifier: Classifier, explainer: Any, pixels_HWC: np.ndarray | None
) -> tuple[dict[str, float], np.ndarray]:
    """Classify and explain a picture, RGBA; dark digits on white paper are inverted."""
    import gradio as gr  # type: ignore (of the extra [demo])
    import matplotlib.image

    if pixels_HWC is None or pixels_HWC.min() == 255:
        raise gr.Error("Draw something, or drop a picture.")
    task = classifier.task
    original_HWC = flatten_picture(pixels_HWC, channels=task.image_shape[2])
    image_HWC = fit_image(classifier.trained, original_HWC)
    if has_opposite_border(task, image_HWC):
        image_HWC = fit_image(classifier.trained, 255 - original_HWC)
    probability_Y = classifier([image_HWC])[0]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "map.png"
        explainer.draw_image(image_HWC, path)
        drawn = matplotlib.image.imread(path)
    names = [
        name if task.class_names.count(name) == 1 else f"{name} ({label})"
        for label, name in enumerate(task.class_names)
    ]
    probabilities = dict(zip(names, probability_Y.tolist(), strict=True))
    return probabilities, (255 * drawn[..., :3]).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
