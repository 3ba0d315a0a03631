"""Lipschitz: how much each channel can change at most when the image changes little, and does by the trigger.

Zheng, Tang, Li, Liu, "Data-free Backdoor Removal based on Channel Lipschitzness" (ECCV 2022), whose repair is
`purify.CLP`: the bound L_k of a channel is known from its convolution and its batch normalisation, without any image.
With the attack, the trigger-activated change of the channel's maps F_k stands beside it,

    TAC_k = mean over images of || F_k(t(x)) - F_k(x) ||,

and the paper finds that channels with a large bound have a large change. That is a correlation over the channels of a
layer; over all layers together, sizes of maps and filters decide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.errors import InputError, UnsuitedError
from unbackdoor.inspect.agreement import correlations
from unbackdoor.inspect.base import Figure, Insight, Inspection, Material
from unbackdoor.inspect.compared import SUSPECT, Pairs, batches, drawn, models_of, pairs_of, side_by_side
from unbackdoor.models import Network
from unbackdoor.purify.channels import norm_layers
from unbackdoor.scan.lipschitz import channel_lipschitz, convolutions_before
from unbackdoor.training import Runtime

Channels = Mapping[str, Float[Tensor, "c"]]
"""A figure of each channel, by layer."""


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Inspection):
    """The Lipschitz bound of each channel, and with the attack how much the trigger changes the channel.

    Attributes:
        u: standard deviations above the mean of its layer from which a channel stands out, as in CLP.
        images: over which the change by the trigger is the mean; 1 or more.
    """

    title: ClassVar[str] = "Lipschitz bounds of the channels"

    u: float = 3.0
    images: int = 500

    def __post_init__(self) -> None:
        if not 0 <= self.u < math.inf or self.images < 1:
            raise InputError(
                f"Lipschitz: u is a number of 0 or more and images 1 or more, found {self.u} and {self.images}"
            )

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Compute bounds, and changes if the attack is known (see `Inspection.inspect`)."""
        pairs = None
        if material.attack is not None:
            pairs = pairs_of(material.clean, material.attack)
            rows = drawn(len(pairs.wanted), self.images, runtime, "lipschitz")
            pairs = Pairs(
                originals=pairs.originals.subset(rows),
                triggered=pairs.triggered.subset(rows),
                wanted=pairs.wanted[rows],
            )
        measured: dict[str, Any] = {}
        details: dict[str, Any] = {}
        scatter, lines = [], []
        for name, one in models_of(model, material, runtime).items():
            layers = bounded_layers(one, runtime)
            bounds = {layer: channel_lipschitz(norm, before).cpu() for layer, (norm, before) in layers.items()}
            changes = None
            if pairs is not None:
                changes = trigger_changes(one, {layer: norm for layer, (norm, _) in layers.items()}, pairs, runtime)
                scatter.append(_scatter(name, bounds, changes))
            lines.append(_lines(name, bounds))
            measured[name] = self._measured(bounds, changes)
            details[f"{name}_bounds"] = {layer: values.tolist() for layer, values in bounds.items()}
            if changes is not None:
                details[f"{name}_changes"] = {layer: values.tolist() for layer, values in changes.items()}
        return Insight(
            headline=_headline(measured[SUSPECT], self.u),
            suspicious="A few channels far above all others of their layer, and with the attack: just these are changed"
            " most by the trigger. Clean models have channels that stand out, too, so compare with one.",
            rows=_rows(measured),
            figures=[*scatter, *lines],
            measured=measured,
            details=details,
        )

    def _measured(self, bounds: Channels, changes: Channels | None) -> dict[str, Any]:
        """Return the figures of one model, as JSON values."""
        outstanding = {layer: values > values.mean() + self.u * _std(values) for layer, values in bounds.items()}
        found: dict[str, Any] = {
            "channels": sum(map(len, bounds.values())),
            "outstanding": {layer: which.nonzero().squeeze(1).tolist() for layer, which in outstanding.items()},
            "largest": {layer: float(values.max()) for layer, values in bounds.items()},
        }
        if changes is not None:
            spearman = {layer: correlations(bounds[layer], changes[layer])[1] for layer in bounds}
            known = [value for value in spearman.values() if math.isfinite(value)]
            found |= {"spearman": spearman, "median_spearman": statistics.median(known) if known else math.nan}
        return found


def bounded_layers(model: Network, runtime: Runtime) -> dict[str, tuple[nn.BatchNorm2d, list[nn.Conv2d]]]:
    """Return the batch normalisations whose channels have a bound, each with the convolutions before it.

    Raises:
        UnsuitedError: there are none.
    """
    try:
        # By their names within the body, as `tapped` and users know them.
        found = norm_layers(model.body, "CLP", statistics=True)
        before = convolutions_before(model, found, runtime)
    except InputError:
        before = {}
    if not before:
        raise UnsuitedError(
            "the bound of a channel is computed for batch normalisation after a convolution, and this network has none"
        )
    return {name: (found[name], convolutions) for name, convolutions in before.items()}


@torch.no_grad()
def trigger_changes(
    model: Network, layers: Mapping[str, nn.BatchNorm2d], pairs: Pairs, runtime: Runtime
) -> dict[str, Float[Tensor, "c"]]:
    """Return the trigger-activated change of each channel of these layers; on the CPU.

    Args:
        model: in evaluation mode, on the device.
        layers: of the model, by name. Of one that runs more than once, the changes of all its runs add up.
        pairs: images without and with the trigger.
        runtime: device.
    """
    totals: dict[str, Tensor] = {}

    def adding(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
            # Here, so that no more than one layer's maps are kept at a time.
            clean, woken = output.double().chunk(2)
            total = torch.linalg.vector_norm((woken - clean).flatten(2), dim=2).sum(0)
            totals[name] = totals[name] + total if name in totals else total

        return add

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(adding(name)))
        parts = (batches(images.images) for images in (pairs.originals, pairs.triggered))
        for clean, woken in zip(*parts, strict=True):
            # In single precision: the difference of large values is small.
            model(runtime.layout(torch.cat([clean, woken])).float() / 255)
    return {name: total.cpu() / len(pairs.wanted) for name, total in totals.items()}


def _std(values: Float[Tensor, "c"]) -> Float[Tensor, ""]:
    # As CLP: a layer of one channel has no spread.
    return values.std() if len(values) > 1 else torch.zeros((), dtype=values.dtype)


def _headline(suspect: dict[str, Any], u: float) -> str:
    count = sum(map(len, suspect["outstanding"].values()))
    told = (
        f"{count} of the suspect's {suspect['channels']} channels lie more than {u:g} standard deviations above their"
        " layer's mean"
    )
    if "spearman" in suspect:
        return (
            f"{told}; bound and change by the trigger correlate by {suspect['median_spearman']:.2f} (Spearman) in the"
            " median layer."
        )
    return f"{told}."


def _rows(measured: dict[str, Any]) -> list[tuple[str, str]]:
    def outstanding(one: dict[str, Any]) -> str:
        where = [f"{layer} {channels}" for layer, channels in one["outstanding"].items() if channels]
        return "; ".join(where) or "none"

    def correlated(one: dict[str, Any]) -> str:
        known = [value for value in one["spearman"].values() if math.isfinite(value)]
        ends = f"  [{min(known):.2f}, {max(known):.2f}]" if known else ""
        return f"{one['median_spearman']:.2f}{ends}"

    rows = [(f"{name}: channels that stand out", outstanding(one)) for name, one in measured.items()]
    if "spearman" in measured[SUSPECT]:
        rows.append(("Spearman of bound and change, median layer [all]", side_by_side(measured, correlated)))
    return rows


def _scatter(name: str, bounds: Channels, changes: Channels) -> Figure:
    return Figure(
        title=f"Bound of a channel and its change by the trigger: {name}",
        explanation="A point is a channel; its colour says the layer, from the first to the last.",
        marks="points",
        series={layer: (values.tolist(), changes[layer].tolist()) for layer, values in bounds.items()},
        x_title="Lipschitz bound",
        y_title="change by the trigger",
        log_x=True,
        log_y=True,
    )


def _lines(name: str, bounds: Channels) -> Figure:
    return Figure(
        title=f"Channels by their Lipschitz bound: {name}",
        explanation="A line is a layer, its channels sorted. A steep fall at the left: few channels stand out.",
        marks="lines",
        series={
            layer: (
                [rank / len(values) for rank in range(1, len(values) + 1)],
                values.sort(descending=True).values.tolist(),
            )
            for layer, values in bounds.items()
        },
        x_title="share of the layer's channels",
        y_title="Lipschitz bound",
        log_y=True,
    )
