"""EP: pruning by the entropy of what comes into batch normalisation.

Zheng, Tang, Li, Liu, "Pre-activation Distributions Expose Backdoor Neurons" (NeurIPS 2022). On the poisoned training
data a channel that answers to the trigger has two kinds of values: those of the clean images, and far from them those
of the triggered ones. Its values, standardised, are a mixture with less entropy than those of other channels. Of each
image the largest value over positions counts. The weights of the channels with H < mean - u std, over the channels of
their layer, are set to 0. The entropy is that of a histogram,

    H = - sum_b p_b log p_b,        bars of one width over all channels of the layer.

The training data as found are needed, poisoned rows and all; which rows these are is not. Where the authors' program
(width 0.01) and BackdoorBench (0.1) leave out values on the edges of bars and the last bar, here every value counts.
Both take one batch of augmented images; here it is `images` of them, as they are. A channel that does not vary gives
them no number, and with it nothing of the layer is pruned; here it says nothing about the others. As in the authors'
program biases stay.

The authors fix u = 3. Here it is the least u, which prunes most, before accuracy on clean samples falls by more than
`allowance`, if there are clean samples; without them, or with `choose` off, `u` is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Needed, Purifier
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.pruning import check_allowance, prune_outliers
from unbackdoor.training import History, Runtime
from unbackdoor.training.inference import BATCH


@dataclass(frozen=True, kw_only=True)
class EP(Purifier):
    """Prune the channels whose values on the untrusted training data have little entropy.

    Attributes:
        u: standard deviations below the layer's mean from which a channel goes, 0 or more, if it is not chosen.
        choose: whether u is chosen by clean samples, if there are any.
        allowance: accuracy on clean samples that may be lost by the choice, 0 to 1.
        images: of the training data that are run, drawn by the seed; all if there are fewer. 2 or more.
        width: of the histogram's bars, in standard deviations of a channel, 0.01 or more.
    """

    needs: ClassVar[frozenset[Needed]] = frozenset({"untrusted"})

    u: float = 3.0
    choose: bool = True
    allowance: float = 0.03
    images: int = 5000
    width: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.u < math.inf:
            raise InputError(f"EP: u must be a number of 0 or more, found {self.u}")
        check_allowance("EP", self.allowance)
        if self.images < 2:
            raise InputError(f"EP: entropy needs 2 images or more, found {self.images}")
        if not 0.01 <= self.width < math.inf:
            raise InputError(f"EP: bars are 0.01 standard deviations wide or more, found {self.width}")

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Prune `model` in place (see `Purifier.repair`)."""
        untrusted = data.need_untrusted("EP")
        if len(untrusted) < 2:
            raise InputError(f"EP: entropy needs 2 images or more, found {len(untrusted)} in {untrusted.name}")
        held = data.need_clean("EP") if self.choose and data.clean is not None else None
        layers = list(norm_layers(runtime.settle(model), "EP").values())
        rows = torch.randperm(len(untrusted), generator=runtime.generator("EP"))[: self.images]
        found = largest_values(model, layers, untrusted.images[rows.to(untrusted.device)], runtime)
        run = [layer for layer in layers if layer in found]
        if not run:
            raise InputError("EP: none of the network's batch normalization is run on images; choose another method")
        scores = [-entropies(found[layer], self.width) for layer in run]
        sweeps, note = prune_outliers("EP", model, run, scores, self.u, held, self.allowance, runtime, bias=False)
        return History(epochs=0, sweeps=sweeps, notes=(note,))


@torch.no_grad()
def largest_values(
    model: nn.Module, layers: Iterable[nn.BatchNorm2d], images: UInt8[Tensor, "n c h w"], runtime: Runtime
) -> dict[nn.BatchNorm2d, Float[Tensor, "c n"]]:
    """Return the largest value over positions that each image brings into each channel.

    Args:
        model: left in evaluation mode.
        layers: of the model; those that are not run are not in the result.
        images: uint8 pixels.
        runtime: device; computed in float32, since differences count.
    """
    values: dict[nn.BatchNorm2d, list[Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        values.setdefault(module, []).append(inputs[0].float().amax((2, 3)))

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(note))
        model.eval()
        for start in range(0, len(images), BATCH):
            model(runtime.layout(images[start : start + BATCH]).float() / 255)
    return {layer: torch.cat(parts).T for layer, parts in values.items()}


def entropies(values: Float[Tensor, "c n"], width: float) -> Float[Tensor, "c"]:
    """Return the entropy of each channel's standardised values, in nats.

    A channel that does not vary gets the others' mean, so that nothing follows from it.

    Args:
        values: of each channel, 2 or more.
        width: of the bars, in standard deviations.
    """
    spread = values.double().std(1, keepdim=True)
    centred = values.double() - values.double().mean(1, keepdim=True)
    # Rounding is no difference.
    varies = (spread > 1e-6 * values.double().abs().amax(1, keepdim=True)).squeeze(1)
    if not varies.any():
        return torch.zeros_like(spread).squeeze(1)
    standard = centred[varies] / spread[varies]
    bars = ((standard - standard.min()) / width).long()
    number = int(bars.max()) + 1
    offset = number * torch.arange(len(bars), device=bars.device).unsqueeze(1)
    counts = torch.bincount((bars + offset).flatten(), minlength=number * len(bars)).view(len(bars), number)
    found = torch.special.entr(counts.double() / bars.shape[1]).sum(1)
    result = torch.full_like(spread.squeeze(1), float(found.mean()))
    result[varies] = found
    return result
