"""FP: fine-pruning, which removes the channels that clean samples leave asleep, and fine-tunes.

Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks" (RAID 2018). The
channels of the last feature maps are removed in the order of their mean absolute activation on clean samples, the least
first, in steps of 1 %, as long as accuracy stays above (1 - tolerance) of what it was; then the rest is fine-tuned. As
in published code a channel is removed by setting what the next linear layer makes of it to 0.

BackdoorBench measures the accuracy on test data, and the paper on a validation set. Here it is a fifth of the clean
samples, held out of the ranking. BackdoorBench keeps, by mistake, the network after the step that went too far, and
removes one channel less than it ranks; here neither. It fine-tunes removed channels back to life; here they stay out.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.choice import accuracy_on, furthest
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, Sweep, fit, logits_of
from unbackdoor.training.fits import check_takes

STEP = 0.01
"""Share of the channels between two numbers that are tried; BackdoorBench's."""


@dataclass(frozen=True, kw_only=True)
class FP(Purifier):
    """Remove the channels of the last feature maps that clean samples leave asleep, and fine-tune.

    Attributes:
        tolerance: share of the accuracy on held-out clean samples that removing channels may cost, 0 to 1.
        epochs: passes over the clean samples.
        batch_size: images a step.
        learning_rate: of SGD, at the start of the cosine.
        augmentation: of the clean samples; see `Recipe`.
    """

    tolerance: float = 0.1
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.01
    augmentation: str = "crop-flip"

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise InputError(f"FP: the tolerance must lie between 0 and 1, found {self.tolerance}")
        self._recipe()

    def _recipe(self) -> Recipe:
        return fine_tuning(self.epochs, self.batch_size, self.learning_rate, self.augmentation)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Prune and fine-tune `model` in place (see `Purifier.repair`)."""
        clean = data.need_clean("FP")
        check_takes(runtime.settle(model), clean, runtime)
        kept, held = hold_out(clean, runtime.seed)
        layer, channels = reading_layer(model, runtime)
        asleep = activity(model, layer, channels, kept, runtime).argsort(stable=True)
        sweep = _sweep(model, layer, asleep, held, self.tolerance, runtime)
        count = round(sweep.chosen * channels)
        off = columns_of(asleep[:count], layer, channels)
        hook = _Removed(self, layer, off)
        with torch.no_grad():
            layer.weight[:, off] = 0
        history = fit(model, clean, self._recipe(), runtime, hook=hook, resume=resume, description="FP")
        note = f"FP removed {count} of {channels} channels of the last feature maps."
        return replace(history, sweeps=(sweep,), notes=(note,))


def reading_layer(model: Network, runtime: Runtime) -> tuple[nn.Linear, int]:
    """Return the linear layer that reads the last feature maps, and the number of their channels.

    One image is run: it is the first linear layer after the last feature maps that is given a vector an image. If that
    vector is no multiple of the maps' channels, its entries are the channels.

    Args:
        model: on the runtime's device; left in evaluation mode.
        runtime: device.

    Raises:
        InputError: no linear layer is given a vector.
    """
    maps = 0
    found: list[nn.Linear] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal maps
        if isinstance(module, nn.Linear) and inputs[0].ndim == 2:
            found.append(module)
        elif isinstance(output, Tensor) and output.ndim == 4:
            maps = output.shape[1]
            found.clear()

    images = torch.zeros((2, *model.description.image_shape), dtype=torch.uint8)
    with ExitStack() as hooks:
        for module in model.body.modules():
            hooks.enter_context(module.register_forward_hook(note))
        logits_of(model, images, runtime)
    if not found:
        raise InputError(
            "FP removes what a linear layer reads, and this network ends without one; choose another method"
        )
    layer = found[0]
    return layer, maps if maps and layer.in_features % maps == 0 else layer.in_features


@torch.no_grad()
def activity(
    model: Network, layer: nn.Linear, channels: int, images: ImageSet, runtime: Runtime
) -> Float[Tensor, "channels"]:
    """Return the mean absolute activation of each channel that the layer reads, over images and positions."""
    return _read(model, layer, images, runtime)[0].abs().mean(0).view(channels, -1).mean(1)


def columns_of(chosen: Int[Tensor, "m"], layer: nn.Linear, channels: int) -> Bool[Tensor, "inputs"]:
    """Return which of the layer's inputs belong to these channels: those of a channel lie side by side."""
    off = torch.zeros(channels, dtype=torch.bool, device=layer.weight.device)
    off[chosen] = True
    return off.repeat_interleave(layer.in_features // channels)


def _sweep(
    model: Network,
    layer: nn.Linear,
    asleep: Int[Tensor, "channels"],
    held: ImageSet,
    tolerance: float,
    runtime: Runtime,
) -> Sweep:
    """Return the sweep over the share of channels that are removed, most asleep first; the model stays as it was."""
    channels = len(asleep)
    step = max(1, round(STEP * channels))
    counts = [*range(0, channels, step), channels]
    before = layer.weight.detach().clone()
    inputs, last = _read(model, layer, held, runtime)
    labels = held.labels.to(inputs.device)
    accuracy = []
    with torch.no_grad():
        for count in counts:
            layer.weight[:, columns_of(asleep[:count], layer, channels)] = 0
            # Where the layer gives the logits, the network before it need not be run again.
            right = (layer(inputs).argmax(1) == labels).float().mean() if last else accuracy_on(model, held, runtime)
            accuracy.append(float(right))
        layer.weight.copy_(before)
    values = [count / channels for count in counts]
    return furthest("share of channels removed", values, accuracy, (1 - tolerance) * accuracy[0])


@torch.no_grad()
def _read(
    model: Network, layer: nn.Linear, images: ImageSet, runtime: Runtime
) -> tuple[Float[Tensor, "n inputs"], bool]:
    """Return what the layer reads of each image, and whether what it puts out are the logits."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        inputs.append(given[0].float())
        outputs.append(output.float())

    with layer.register_forward_hook(note):
        logits = logits_of(model, images.to(runtime.place).images, runtime)
    made = torch.cat(outputs)
    return torch.cat(inputs), made.shape == logits.shape and torch.equal(made, logits)


class _Removed(Hook):
    """Keeps removed channels out of what a layer reads."""

    def __init__(self, options: FP, layer: nn.Linear, off: Bool[Tensor, "inputs"]) -> None:
        self.options, self.layer, self.off = options, layer, off

    def identity(self) -> object:
        """Return the options and what is removed."""
        return self.options, self.off.nonzero().flatten().tolist()

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step, and set to 0 again what is removed."""
        loss = super().update(model, batch, optimizer)
        with torch.no_grad():
            self.layer.weight[:, self.off] = 0
        return loss
