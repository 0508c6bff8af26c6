"""How fast is inference: one image, and many?"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.cases import Case, cases
from benchmarks.timing import Timing, take_turns


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a forward pass of one image, and of a batch as in training."""
    for name, case in cases(small=small).items():
        for batch_size, num_calls in ((1, 4 if small else 32), (case.batch_size, 2)):
            yield from take_turns(
                f"{name}, batch {batch_size}",
                _make_programs(case, batch_size, num_calls, compiled=not small),
                rounds=rounds,
                images=batch_size,
                units=num_calls,
            )


def _make_programs(
    case: Case, batch_size: int, num_calls: int, *, compiled: bool
) -> dict[str, Callable[[], None]]:
    """The programs to compare: each makes a number of calls, one after another."""
    import torch

    from benchmarks import peers

    experiment = ours.make_experiment(case)
    variables = experiment.first_state().eval_variables
    predict = jax.jit(experiment.model.apply)
    image_BHWC = jnp.zeros((batch_size, *case.image_shape))
    peer = peers.make_model(case).to(peers.DEVICE).eval()
    height, width, channels = case.image_shape
    image_BCHW = torch.zeros(batch_size, channels, height, width, device=peers.DEVICE)
    if case.is_convolutional:
        peer = peer.to(memory_format=torch.channels_last)  # type: ignore
        image_BCHW = image_BCHW.to(memory_format=torch.channels_last)

    def our_program() -> None:
        for _ in range(num_calls):
            jax.block_until_ready(predict(variables, image_BHWC))

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
