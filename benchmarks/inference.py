"""How fast is inference: one image, and many?"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import torch

from benchmarks import ours, peers
from benchmarks.cases import Case, cases
from benchmarks.timing import Timing, take_turns


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a forward pass of one image, and of a batch as in training."""
    for name, case in cases(small=small).items():
        model = ours.make_model(case)
        one_image = jnp.zeros((1, *case.image_shape))
        variables = jax.jit(model.init)(jax.random.key(0), one_image)
        predict = functools.partial(jax.jit(model.apply), variables)
        for batch_size, num_calls in ((1, 4 if small else 32), (case.batch_size, 2)):
            yield from take_turns(
                f"{name}, batch {batch_size}",
                _make_programs(
                    case, predict, batch_size, num_calls, compiled=not small
                ),
                rounds=rounds,
                images=batch_size,
                units=num_calls,
            )


def _make_programs(
    case: Case,
    predict: Callable[[jax.Array], jax.Array],
    batch_size: int,
    num_calls: int,
    *,
    compiled: bool,
) -> dict[str, Callable[[], None]]:
    """Make the programs to compare: each makes a number of calls in a row."""
    height, width, channels = case.image_shape
    image_BHWC = jnp.zeros((batch_size, height, width, channels))
    peer = peers.make_model(case).to(peers.DEVICE).eval()
    image_BCHW = torch.zeros(batch_size, channels, height, width, device=peers.DEVICE)
    if case.is_convolutional:
        peer = peer.to(memory_format=torch.channels_last)  # type: ignore
        image_BCHW = image_BCHW.to(memory_format=torch.channels_last)

    def our_program() -> None:
        for _ in range(num_calls):
            jax.block_until_ready(predict(image_BHWC))

    def torch_program(model: Callable) -> Callable[[], None]:
        def call() -> None:
            with torch.inference_mode():
                for _ in range(num_calls):
                    model(image_BCHW).cpu()

        return call

    programs = {"ours": our_program, "PyTorch eager": torch_program(peer)}
    if compiled:
        programs["PyTorch compiled"] = torch_program(torch.compile(peer))
    return programs
