"""Activation: how strongly each neuron before the last layer answers to clean images, and to triggered ones.

Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks" (RAID 2018),
found neurons that are silent on clean images and that a trigger wakes. Zheng and others (ECCV 2022) call the mean
change of a neuron by the trigger its trigger-activated change (TAC): for features h_k and trigger t,

    TAC_k = mean over images of | h_k(t(x)) - h_k(x) |.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from unbackdoor.inspect.agreement import gini
from unbackdoor.inspect.base import Figure, Insight, Inspection, Material
from unbackdoor.inspect.compared import CLEAN, SUSPECT, TRIGGERED, features_of, models_of, pairs_of, side_by_side
from unbackdoor.models import Network
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Activation(Inspection):
    """The mean activation of each neuron before the last layer, on clean and on triggered images."""

    title: ClassVar[str] = "Activation of the neurons"

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Read the features of all images (see `Inspection.inspect`)."""
        pairs = None if material.attack is None else pairs_of(material.clean, material.attack)
        measured, details, figures = {}, {}, []
        for name, one in models_of(model, material, runtime).items():
            if pairs is None:
                clean, woken = features_of(one, material.clean, runtime)[0], None
            else:
                clean, woken = (features_of(one, images, runtime)[0] for images in (pairs.originals, pairs.triggered))
            measured[name] = measured_features(clean, woken)
            means = {CLEAN: clean.mean(0)} | ({} if woken is None else {TRIGGERED: woken.mean(0)})
            details[f"{name}_activation"] = {kind: values.tolist() for kind, values in means.items()}
            figures.append(_figure(name, means))
        return Insight(
            headline=_headline(measured[SUSPECT]),
            suspicious="A few neurons that are silent on clean images and strong on triggered ones. Without a backdoor"
            " a trigger changes all neurons a little.",
            rows=_rows(measured),
            figures=figures,
            measured=measured,
            details=details,
        )


def measured_features(clean: Float[Tensor, "n d"], woken: Float[Tensor, "n d"] | None) -> dict[str, Any]:
    """Return the figures of one model, as JSON values.

    Args:
        clean: features of images without the trigger.
        woken: of the same images with it, or None.
    """
    # Of features with a sign, as pre-activation networks have them, a strong one may be negative.
    strength = clean.abs().mean(0)
    found: dict[str, Any] = {"neurons": clean.shape[1], "silent": int((clean == 0).all(0).sum())}
    if woken is not None:
        change = (woken - clean).abs().mean(0)
        quiet = strength.argsort()[: len(strength) // 2]
        total = change.sum().clamp_min(1e-300)
        found |= {
            "change": change.tolist(),
            "change_gini": gini(change),
            "change_in_quiet_half": float(change[quiet].sum() / total),
            "change_in_top_tenth": float(
                change.sort(descending=True).values[: max(1, len(change) // 10)].sum() / total
            ),
        }
    return found


def _headline(suspect: dict[str, Any]) -> str:
    if "change" not in suspect:
        return f"{suspect['silent']} of the suspect's {suspect['neurons']} neurons are silent on all clean images."
    return (
        f"Of the change that the trigger makes in the suspect's {suspect['neurons']} neurons,"
        f" {100 * suspect['change_in_quiet_half']:.0f} % is in the half that is quietest on clean images, and"
        f" {100 * suspect['change_in_top_tenth']:.0f} % in a tenth of them."
    )


def _rows(measured: dict[str, Any]) -> list[tuple[str, str]]:
    def figure(title: str, told: Callable[[dict[str, Any]], str]) -> tuple[str, str]:
        return title, side_by_side(measured, told)

    rows = [figure("neurons silent on all clean images", lambda one: f"{one['silent']} of {one['neurons']}")]
    if "change" in measured[SUSPECT]:
        rows += [
            figure("change in the quiet half", lambda one: f"{100 * one['change_in_quiet_half']:.1f} %"),
            figure("change in the tenth that changes most", lambda one: f"{100 * one['change_in_top_tenth']:.1f} %"),
            figure("Gini of the change", lambda one: f"{one['change_gini']:.2f}"),
        ]
    return rows


def _figure(name: str, means: dict[str, Float[Tensor, "d"]]) -> Figure:
    order = means[CLEAN].argsort(descending=True)
    ranks = [*range(1, len(order) + 1)]
    return Figure(
        title=f"Mean activation of the neurons before the last layer: {name}",
        explanation="A neuron is a place on the horizontal axis; the highest mean on clean images is at the left.",
        marks="points",
        series={kind: (ranks, values[order].tolist()) for kind, values in means.items()},
        x_title="rank of the neuron on clean images",
        y_title="mean activation",
        distinct=True,
        stands_out=TRIGGERED,
    )
