"""`Runtime`: where and how computation happens; built once, handed down to every method."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

M = TypeVar("M", bound=nn.Module)


class Progress(Protocol):
    """How long work is shown; the library itself shows nothing."""

    def bar(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Return a context that shows a bar; what it yields is called after each of `total` steps."""
        ...

    def note(self, text: str) -> None:
        """Show one line, such as a resumed epoch."""
        ...


class Silent:
    """No progress at all."""

    def bar(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Return a context that shows nothing."""
        return nullcontext(lambda: None)

    def note(self, text: str) -> None:
        """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Device, precision, threads, seed, budget and progress.

    Attributes:
        device: "auto" (a CUDA GPU if there is one), "cpu" or "cuda".
        precision: "bf16" (automatic mixed precision in bfloat16) or "fp32".
        threads: CPU threads; 0 chooses by measuring, and not more than OMP_NUM_THREADS where that is set.
        seed: every random draw derives from it; 0 to 2^63 - 1.
        budget: minutes that one method may take; schedules are shortened to fit. None: the paper's schedule.
        progress: how progress is shown.

    Raises:
        InputError: a device that is not there, or a value out of range.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int = 0
    seed: int = 0
    budget: float | None = None
    progress: Progress = field(default_factory=Silent, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise InputError(f"threads must be 0 or more, found {self.threads}")
        # What PyTorch's generators take.
        if not 0 <= self.seed < 2**63:
            raise InputError(f"a seed lies between 0 and 2^63 - 1, found {self.seed}")
        if self.budget is not None and not self.budget > 0:
            raise InputError(f"a budget is a positive number of minutes, found {self.budget}")
        if self.device not in ("auto", "cpu", "cuda") or self.precision not in ("bf16", "fp32"):
            raise InputError(
                f"the device is auto, cpu or cuda and the precision bf16 or fp32, found {self.device!r} and"
                f" {self.precision!r}"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device cuda is not available here; use --device cpu or a CUDA build of PyTorch")

    @cached_property
    def fabric(self) -> Fabric:
        """Lightning Fabric, which knows devices and precisions."""
        torch.set_num_threads(self.threads or fastest_threads())
        # cuDNN's convolutions take numbers of 10 bits for float32 ones; who asks for float32 needs the others too.
        torch.backends.cudnn.allow_tf32 = False
        return self._new_fabric()

    def _new_fabric(self) -> Fabric:
        from lightning_fabric import Fabric

        # It announces its precision on standard error at every start.
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        wanted = "cuda" if self.device == "auto" and torch.cuda.is_available() else self.device
        accelerator = "cpu" if wanted == "auto" else wanted
        return Fabric(
            accelerator=accelerator,
            devices=1,
            precision="bf16-mixed" if self.precision == "bf16" else "32-true",
        )

    def in_float32(self) -> Runtime:
        """Return the same runtime in float32, for a stage in which small differences are the signal."""
        if self.precision == "fp32":
            return self
        exact = replace(self, precision="fp32")
        # The threads are not measured again (see `part`).
        _ = self.fabric
        exact.__dict__["fabric"] = exact._new_fabric()
        return exact

    def part(self, share: float) -> Runtime:
        """Return the same runtime with that share of the budget, for one of several stages of a method."""
        if self.budget is None:
            return self
        part = replace(self, budget=self.budget * share)
        # Not measured again: another number of threads would add up in another order.
        part.__dict__["fabric"] = self.fabric
        return part

    @property
    def place(self) -> torch.device:
        """The device that tensors and networks are moved to."""
        return self.fabric.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward passes run in this precision."""
        return self.fabric.autocast()

    def settle(self, module: M) -> M:
        """Move a module to the device, in channels_last layout; return it."""
        return module.to(device=self.place, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def layout(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return images on the device, in the layout that convolutions want."""
        return images.to(self.place).contiguous(memory_format=torch.channels_last)

    def compiled(self, module: M) -> M:
        """Return the module compiled where that pays (a GPU), otherwise itself.

        PyTorch's own switch `TORCH_COMPILE_DISABLE=1` turns it off, for GPUs or machines without a compiler.
        """
        if self.place.type != "cuda":
            return module
        return torch.compile(module)  # type: ignore[return-value]

    def generator(self, *purpose: object) -> torch.Generator:
        """Return a CPU generator that depends on the seed and the purpose alone.

        Args:
            *purpose: what is drawn, such as ("order", epoch); other purposes draw independently.
        """
        digest = hashlib.sha256(repr((self.seed, *purpose)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def describe(self) -> dict[str, str]:
        """Return what a report says about the machine and the versions."""
        import unbackdoor

        device = self.place
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
        return {
            "device": f"{device.type} ({name})",
            "precision": self.precision,
            "threads": str(torch.get_num_threads()),
            "seed": str(self.seed),
            "budget": "none" if self.budget is None else f"{self.budget:g} minutes",
            "unbackdoor": unbackdoor.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def fastest_threads() -> int:
    """Return the number of threads with which a small training step is fastest right now; at most OMP_NUM_THREADS.

    Busy threads on cores that other programs use too can be many times slower than fewer threads, so this is
    measured, in a fraction of a second; more threads win only if they are at least a tenth faster.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    # What whoever starts several programs at once sets for each; a list is of nested regions.
    allowed = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if allowed.isdecimal() and int(allowed):
        cores = min(cores, int(allowed))
    candidates = sorted({1, cores // 2, cores} - {0})
    if len(candidates) == 1:
        return candidates[0]
    layer = nn.Conv2d(32, 32, 3, padding=1, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(64, 32, 32, 32).contiguous(memory_format=torch.channels_last)
    best, best_seconds = 1, float("inf")
    for threads in candidates:
        torch.set_num_threads(threads)
        seconds = min(_timed_step(layer, images) for _ in range(6))
        if seconds < 0.9 * best_seconds:
            best, best_seconds = threads, seconds
    return best


def _timed_step(layer: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    # Whoever asks first may be inside of `no_grad`.
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(images).float().sum().backward()
    return time.perf_counter() - start


def _processor() -> str:
    cpuinfo = "/proc/cpuinfo"
    if os.path.exists(cpuinfo):  # noqa: PTH110 - a fixed system path
        with open(cpuinfo, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
