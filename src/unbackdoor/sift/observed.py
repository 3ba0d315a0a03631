"""`Observed`: what a model makes of the untrusted rows, computed once and shared by all sifters that look at it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network, feature_map_names, last_linear, tapped
from unbackdoor.training import Runtime
from unbackdoor.training.fits import check_takes

BATCH = 500
"""Images a forward pass."""

Change = Callable[[Float[Tensor, "b c h w"], slice], Float[Tensor, "b c h w"]]
"""What is done to a batch of images in [0, 1] before the model sees it; the slice says which rows they are."""


class Observed:
    """A frozen copy of a model, the untrusted rows, and what the one makes of the others.

    Args:
        model: not changed.
        rows: the untrusted data.
        clean: clean samples, or None.
        runtime: device, seed, budget of what the sifter does.
        resume: see `Sifter.score`.

    Attributes:
        model: the copy, in evaluation mode, without gradients, on the device.
        rows, clean, runtime, resume: as given.

    Raises:
        InputError: the model cannot take the images, or has no linear layer whose features could be read.
    """

    def __init__(
        self, model: Network, rows: ImageSet, clean: ImageSet | None, runtime: Runtime, resume: Path | None = None
    ) -> None:
        self.model = runtime.settle(copy.deepcopy(model)).eval().requires_grad_(False)
        self.rows, self.clean, self.runtime, self.resume = rows, clean, runtime, resume
        check_takes(self.model, rows, runtime)
        self._head = self._find_head(self.model)

    def over(self, rows: ImageSet) -> Observed:
        """Return the same model with other rows of that shape, such as the next few of data that are not held whole."""
        other = copy.copy(self)
        # What was computed of the rows before.
        for name in ("_passed", "losses"):
            other.__dict__.pop(name, None)
        other.rows = rows
        return other

    def head(self, model: nn.Module) -> nn.Linear:
        """Return the last linear layer of the model, or of a copy of it: what it reads are the features.

        Raises:
            InputError: there is none.
        """
        return self._head if model is self.model else self._find_head(model)

    def _find_head(self, model: nn.Module) -> nn.Linear:
        linear = last_linear(model, self.runtime.layout(self.rows.images[:1]).float() / 255)
        if linear is None:
            raise InputError("sifting reads the features before a network's last linear layer, and this one has none")
        return linear

    @cached_property
    def _passed(self) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        return run_over(self.model, self.head(self.model), self.rows.images, self.runtime, "features of all rows")

    @property
    def features(self) -> Float[Tensor, "n d"]:
        """What the last linear layer reads, of each row; on the CPU."""
        return self._passed[0]

    @property
    def logits(self) -> Float[Tensor, "n k"]:
        """Of each row; on the CPU."""
        return self._passed[1]

    @cached_property
    def losses(self) -> Float[Tensor, "n"]:
        """Cross-entropy of each row with its given label."""
        return F.cross_entropy(self.logits, self.rows.labels.cpu(), reduction="none")

    @cached_property
    def clean_features(self) -> Float[Tensor, "m d"] | None:
        """Features of the clean samples, or None if there are none."""
        if self.clean is None:
            return None
        return run_over(self.model, self.head(self.model), self.clean.images, self.runtime)[0]

    def of_class(self, number: int) -> Tensor:
        """Return the rows with that given label."""
        return (self.rows.labels.cpu() == number).nonzero().squeeze(1)

    @cached_property
    def map_name(self) -> str | None:
        """The last feature map that differs between positions, for `tapped`; None if the network has no maps."""
        names = feature_map_names(self.model, self.runtime.layout(self.rows.images[:1]).float() / 255)
        return names[-1] if names else None

    @torch.no_grad()
    def maps(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c p"]:
        """Return the last feature map of some images, its positions in a row; where there are no maps, the features."""
        batch = self.runtime.layout(images).float() / 255
        with self.runtime.autocast():
            if self.map_name is None:
                with feeding(self.head(self.model)) as fed:
                    self.model(batch)
                return fed[0].float().flatten(1)[:, :, None]
            with tapped(self.model, self.map_name) as outputs:
                self.model(batch)
        return outputs[self.map_name].float().flatten(2)


@contextmanager
def feeding(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that holds what the layer read in the last forward pass, as its only element."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = [inputs[0]]

    with ExitStack() as hooks:
        hooks.enter_context(layer.register_forward_pre_hook(note))
        yield seen


@torch.no_grad()
def run_over(
    model: nn.Module,
    head: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    runtime: Runtime,
    description: str = "",
    change: Change | None = None,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
    """Return features (what `head` reads) and logits of all images, in single precision, on the CPU.

    Args:
        model: in evaluation mode, on the runtime's device.
        head: its last linear layer.
        images: uint8 pixels.
        runtime: device and precision.
        description: of the progress bar; empty: none is shown.
        change: done to each batch before the model sees it.
    """
    features, logits = [], []
    starts = range(0, len(images), BATCH)
    with ExitStack() as stack:
        advance = stack.enter_context(runtime.progress.bar(description, len(starts))) if description else (lambda: None)
        fed = stack.enter_context(feeding(head))
        stack.enter_context(runtime.autocast())
        for start in starts:
            part = slice(start, start + BATCH)
            batch = runtime.layout(images[part]).float() / 255
            if change is not None:
                batch = runtime.layout(change(batch, part))
            logits.append(model(batch).float().cpu())
            features.append(fed[0].float().flatten(1).cpu())
            advance()
    return torch.cat(features), torch.cat(logits)
