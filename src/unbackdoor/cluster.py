"""A running Ray: one of our own on this machine, or a cluster's."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from unbackdoor.data.limits import reason_of
from unbackdoor.errors import InputError, OutputError

RETRIES = 3
"""Times that a piece of work is begun again because its machine or its process was lost."""

SETTINGS = {
    # Ray tells its makers nothing.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without this Ray replaces the loopback address by one that others can reach.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # What it says of lost processes stands in the outcome of their work, not among our answers.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # Nor does what its core warns of where Ray Data starts processes, though none of it is lost with a machine.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray lets its work wait for everything else on the machine; here it is what the machine is for.
    "RAY_worker_niceness": "0",
    # Work that takes more memory than there is would be begun again for ever.
    "RAY_task_oom_retries": str(RETRIES),
    # Ray warns about what it will do in a later version unless this says that it is wanted now.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment variables of Ray, unless the user has set them."""

LOCAL_STORE_BYTES = 500_000_000
"""Memory in which Ray keeps files on the way between processes of one machine; what is more goes to the disk."""


def start(address: str | None, missing: str) -> tuple[ModuleType, bool]:
    """Return Ray, started unless it is running already, and whether it was started here.

    Args:
        address: of a cluster; None: a Ray of our own on this machine.
        missing: the sentence where Ray is not installed.

    Raises:
        InputError: it is not installed, or does not start.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError(missing) from error
    if ray.is_initialized():
        return ray, False
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        # On the loopback address: whoever reaches a Ray can run code on it.
        common |= {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
        common |= {"_node_ip_address": "127.0.0.1"}
    try:
        with _unheard():
            ray.init(address or "local", **common)
    # Whatever it is: a busy port, no rights, a wrong address. Ray has no one exception for it.
    except Exception as error:
        raise InputError(f"Ray does not start: {reason_of(error)}; see --address") from error
    return ray, True


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Let nobody hear what is written to standard error: Ray's core announces there what its environment asks for."""
    heard = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(heard, 2)
        os.close(heard)
        os.close(nowhere)


def stop(ray: ModuleType) -> None:
    """Let go of a Ray that `start` started."""
    with contextlib.suppress(Exception):
        ray.shutdown(wait_for_processes=True)


def machines(ray: ModuleType) -> list[Mapping[str, float]]:
    """Return what each machine has, "CPU" and "GPU" among it; not those that are only there to lead."""
    with present():
        nodes = ray.nodes()
    return [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0)]


def this_machine() -> Mapping[str, float]:
    """Return what a Ray of our own would have here, as `machines` tells it, without starting one."""
    import torch

    here: dict[str, float] = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    with contextlib.suppress(OSError, IndexError, ValueError):
        here["memory"] = 1024.0 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
    return here


@contextlib.contextmanager
def present() -> Iterator[None]:
    """Turn what Ray raises when its cluster has gone into one sentence."""
    from ray.exceptions import RayError

    try:
        yield
    except (ConnectionError, RuntimeError, RayError) as error:
        raise OutputError(f"the Ray cluster is gone: {reason_of(error)}; the same command goes on") from error


def fitting(machine: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Return how many pieces of work with so many cores and GPUs fit on one machine at one time.

    Each gets whole GPUs or a part of one, so a GPU bears only as many parts as fit into it.
    """
    by_cpu = int(machine.get("CPU", 0) // cpus)
    if not gpus:
        return by_cpu
    available = machine.get("GPU", 0)
    # A hair more: 1 / 0.1 is less than 10 to a computer.
    by_gpu = available // gpus if gpus >= 1 else available * int(1 / gpus + 1e-9)
    return min(by_cpu, int(by_gpu))


def gpus_each(machines: Sequence[Mapping[str, float]], wanted: float | None, device: str, option: str) -> float:
    """Return the GPUs that each piece of work gets.

    Args:
        machines: what each has.
        wanted: what was asked for; None: 1 where there are GPUs and the device is not the processor.
        device: "auto", "cpu" or "cuda", of every piece.
        option: that asks for GPUs, for the message.

    Raises:
        InputError: the device is a GPU, and there are none to get.
    """
    if wanted is None:
        wanted = 1.0 if device != "cpu" and any(machine.get("GPU", 0) for machine in machines) else 0.0
    if device == "cuda" and not wanted:
        raise InputError(f"--device cuda needs {option} above 0, and Ray a machine with a GPU")
    return wanted


def check_gpus(gpus: float | None, option: str) -> None:
    """Raise InputError unless this is 0, a part of a GPU, or whole GPUs; None is."""
    if gpus is not None and not (gpus == 0 or 0.001 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
        raise InputError(f"{option} is 0, a part of a GPU of at least 0.001, or whole GPUs; found {gpus}")
