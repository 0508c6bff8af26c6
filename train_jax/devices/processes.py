"""Train with several processes (jax.distributed): start, exchange, failure."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Result = TypeVar("Result")

# After so long without a heartbeat a process counts as dead, and the others stop.
_HEARTBEAT_SECONDS = 20
_START_SECONDS = 120

# How long the others wait at the end for process 0, which draws the plots.
_END_SECONDS = 600

# How long a process that failed waits for the others, which may not know of it.
_FAILURE_SECONDS = 20

# Length of the longest error message that process 0 sends to the others, bytes.
_LONGEST_MESSAGE = 4096


def join(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Join the processes of a run; call it before anything else is done with JAX.

    If the others do not come in time, JAX ends this one with a message of its own.

    Args:
        coordinator: HOST:PORT of process 0; "auto" to ask the cluster (TPU, SLURM, Open
            MPI, Kubernetes); None to do so only if its launcher started several
            processes.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ValueError: if the arguments do not fit together, or there is no cluster.
    """
    numbers = {"--num_processes": num_processes, "--process_id": process_id}
    if coordinator in (None, "auto"):
        for flag, value in numbers.items():
            if value is not None:
                raise ValueError(f"{flag} needs --coordinator=HOST:PORT, got {value}")
        if coordinator == "auto" or _launched_by_a_cluster():
            _initialize()
        check_devices()
        if jax.process_count() > 1 and not jax.distributed.is_initialized():
            raise ValueError(
                f"this is one of {jax.process_count()} hosts of a TPU slice; start the "
                "command on each of them, with --coordinator auto"
            )
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(
            f"--coordinator must be HOST:PORT or auto, got {coordinator!r}"
        )
    for flag, value in numbers.items():
        if value is None:
            raise ValueError(f"--coordinator {coordinator} needs {flag}")
    assert num_processes is not None and process_id is not None
    if num_processes < 1:
        raise ValueError(f"--num_processes must be at least 1, got {num_processes}")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"--process_id must be in [0, {num_processes - 1}], got {process_id}"
        )
    _initialize(coordinator, num_processes, process_id)
    check_devices()


def check_devices() -> None:
    """Raise ValueError if JAX finds none of the devices that it is told to use."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no such device"])[0]
        raise ValueError(
            f"JAX has no device to compute on, JAX_PLATFORMS is "
            f"{os.environ.get('JAX_PLATFORMS', '')!r}: {reason}"
        ) from error


def _initialize(*arguments: str | int) -> None:
    """Start JAX's distributed service, but leave SIGTERM to `StopRequest`."""
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *arguments,  # type: ignore
            local_device_ids=[] if _uses_all_devices() else None,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_END_SECONDS,
        )
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason was given"])[0]
        raise ValueError(
            f"the processes of the run could not be joined: {reason}"
        ) from error
    except ValueError as error:
        if arguments:
            raise
        raise ValueError(
            f"JAX does not know how to reach the other processes ({error}); give "
            "--coordinator HOST:PORT, --num_processes and --process_id"
        ) from error


def _uses_all_devices() -> bool:
    """Whether this process uses all GPUs that it sees: it is alone, or sees only one.

    JAX would take the one of the process's number on the node.
    """
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return False
    sees_one = "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ",")
    # mpirun in a job of SLURM has variables of both, and starts its daemons by srun.
    is_alone = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "") == "1"
    if "OMPI_COMM_WORLD_LOCAL_SIZE" not in os.environ and "SLURM_NTASKS" in os.environ:
        # Every node has at least one.
        num_nodes = os.environ.get("SLURM_STEP_NUM_NODES")
        is_alone = os.environ["SLURM_NTASKS"] == num_nodes
    return sees_one or is_alone


def _launched_by_a_cluster() -> bool:
    """Whether a launcher that JAX knows started this process as one of several."""
    counts = {
        "SLURM_NTASKS": "SLURM_STEP_NODELIST",  # the latter is set by srun alone
        "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    }
    for count, sign in counts.items():
        if sign in os.environ and int(os.environ.get(count, "1")) > 1:
            return True
    # Those of a TPU slice on Google Kubernetes Engine.
    lists = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return any("," in os.environ.get(name, "") for name in lists)


@contextlib.contextmanager
def ending_together(program: str) -> Iterator[None]:
    """End this process, with a line, when another one of the run or memory is lost."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        reason = (str(error).splitlines() or ["memory ran out"])[0]
        is_alone = jax.process_count() == 1
        if isinstance(error, MemoryError):
            remedy = "config.dataset.streaming=True reads images when they are needed"
        elif "RESOURCE_EXHAUSTED" in reason:
            remedy = "a smaller config.batch_size, more accumulation_steps or a smaller"
            remedy += " model takes less memory"
        elif not is_alone:
            remedy = (
                "if another process of the run was lost, start all of them again to "
                "resume"
            )
        else:
            raise
        print(f"{program}: error: {reason}; {remedy}", file=sys.stderr, flush=True)
        if is_alone:
            raise SystemExit(1) from error
        # An orderly end would wait for the others.
        os._exit(1)


def limit_end(exit_code: int) -> None:
    """End this process soon, even if the others of the run do not end as well.

    An orderly end waits for all processes. One that may have failed alone must not do
    so: the others wait for it in an exchange, until it has gone. Not for an end that
    all processes know of, as another one may still save.
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(_FAILURE_SECONDS, os._exit, [exit_code])
        timer.daemon = True
        timer.start()


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def max_over_processes(*values: float) -> list[float]:
    """Take the maximum of each value over all processes."""
    if jax.process_count() == 1:
        return list(values)
    gathered = multihost_utils.process_allgather(np.array(values, np.float32))
    return np.asarray(gathered).max(axis=0).tolist()


def call_on_main(function: Callable[[], Result]) -> Result | None:
    """Call a function in process 0 alone; its error is raised in all processes.

    Returns:
        What the function returns; None in the other processes.

    Raises:
        ValueError: in every process, if the function raises one or an OSError; a single
            process raises the error itself.
    """
    message, result = b"", None
    if is_main():
        try:
            result = function()
        except (OSError, ValueError) as error:
            if jax.process_count() == 1:
                raise
            message = str(error) or type(error).__name__
            message = message.encode()[:_LONGEST_MESSAGE]
    if jax.process_count() > 1:
        letters = np.zeros(_LONGEST_MESSAGE, np.uint8)
        letters[: len(message)] = np.frombuffer(message, np.uint8)
        letters = multihost_utils.broadcast_one_to_all(letters)
        message = np.asarray(letters, np.uint8).tobytes().rstrip(b"\0")
        if message:
            raise ValueError(message.decode(errors="replace"))
    return result


def broadcast_from_main(number: int) -> int:
    """Broadcast an integer from process 0."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
