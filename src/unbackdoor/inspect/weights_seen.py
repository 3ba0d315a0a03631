"""What `Weights` saw of its models: the figures, in words, and drawn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.inspect.agreement import chance_overlap, correlations, gini, mean_interval, top_overlap
from unbackdoor.inspect.base import Figure, Insight
from unbackdoor.inspect.compared import REFERENCE, SUSPECT
from unbackdoor.inspect.gradients import GradientNorms, gradient_ratio, norms_figure

Changes = list[Float[Tensor, "neurons"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What one model shows.

    Attributes:
        layers: names of those with neurons, in order.
        changes: NWC of each layer's neurons, of "clean" and, with an attack, "poison" unlearning.
        epochs: that each unlearning took.
        norms: of gradients in fine-tuning.
        notes: of unlearning.
    """

    layers: list[str]
    changes: Mapping[str, Changes]
    epochs: Mapping[str, int]
    norms: GradientNorms
    notes: Sequence[str]

    def pairs(self) -> Iterator[tuple[str, Float[Tensor, "neurons"], Float[Tensor, "neurons"]]]:
        """Yield each layer's name with its clean and its poison changes; nothing without an attack."""
        if "poison" in self.changes:
            yield from zip(self.layers, self.changes["clean"], self.changes["poison"])

    def correlated(self) -> dict[str, tuple[float, float]]:
        """Return Pearson's and Spearman's correlation of each layer, by name."""
        return {name: correlations(clean, poison) for name, clean, poison in self.pairs()}

    def median(self, which: int) -> float:
        """Return the median over the layers of Pearson's (0) or Spearman's (1) correlation; NaN if there is none."""
        known = [pair[which] for pair in self.correlated().values() if math.isfinite(pair[which])]
        return statistics.median(known) if known else math.nan


def insight(shares: Sequence[float], seen: Mapping[str, Seen]) -> Insight:
    """Return what the suspect shows, beside the reference if there is one.

    Args:
        shares: of all neurons that count as the most changed.
        seen: of the models, by "suspect" and "reference".
    """
    suspect, reference = seen[SUSPECT], seen.get(REFERENCE)
    measured = {name: _measured(shares, one) for name, one in seen.items()}
    ratio = None if reference is None else gradient_ratio(suspect.norms, reference.norms)
    headline, detail = _sentences(measured, ratio)
    details = {
        f"{name}_nwc": {
            kind: {layer: values.tolist() for layer, values in zip(one.layers, changes)}
            for kind, changes in one.changes.items()
        }
        for name, one in seen.items()
    }
    notes = [
        "The intervals are over the steps of one run of fine-tuning, which follow on each other; other seeds and other"
        " models of the same kind can differ by more."
    ]
    if reference is not None and reference.layers != suspect.layers:
        notes.append("The reference is another network than the suspect, so their gradients cannot be compared.")
    return Insight(
        headline=headline,
        detail=detail,
        suspicious="Neurons that change much in both kinds of unlearning, more of them than in a clean reference, and"
        " longer gradients than the reference's. A correlation alone says little: clean models show it too.",
        rows=list(_rows(measured, ratio)),
        tables={f"Layers of the {name}": _layer_rows(measured[name]) for name in seen},
        figures=_figures(seen),
        measured={**measured, "gradient_ratio": ratio},
        details=details,
        notes=[*notes, *(note for one in seen.values() for note in one.notes)],
    )


def _measured(shares: Sequence[float], seen: Seen) -> dict[str, Any]:
    """Return the figures of one model, as JSON values."""
    correlated = seen.correlated()
    layers = {
        name: {
            "neurons": len(change),
            "gini": gini(change),
            "activeness": mean_interval(seen.norms.activeness[:, number].tolist()),
            **(dict(zip(("pearson", "spearman"), correlated[name])) if name in correlated else {}),
        }
        for number, (name, change) in enumerate(zip(seen.layers, seen.changes["clean"]))
    }
    total = torch.cat(list(seen.changes["clean"]))
    ordered = total.sort(descending=True).values
    found: dict[str, Any] = {
        "epochs": dict(seen.epochs),
        "layers": layers,
        "gini": gini(total),
        "top_tenth": float(ordered[: max(1, len(ordered) // 10)].sum() / ordered.sum().clamp_min(1e-300)),
        "gradient_norm": mean_interval(seen.norms.total.tolist()),
        "gradient_norms": seen.norms.total.tolist(),
    }
    if "poison" in seen.changes:
        clean, poison = seen.changes["clean"], seen.changes["poison"]
        pearson, spearman = correlations(total, torch.cat(list(poison)))
        found |= {
            "median_layer": {"pearson": seen.median(0), "spearman": seen.median(1)},
            "all_neurons": {"pearson": pearson, "spearman": spearman},
            "overlap": [
                {
                    "share": share,
                    "overlap": top_overlap(total, torch.cat(list(poison)), share),
                    "by_layers_alone": chance_overlap(clean, poison, share),
                }
                for share in shares
            ],
        }
    return found


def _sentences(measured: Mapping[str, Mapping[str, Any]], ratio: Mapping[str, float] | None) -> tuple[str, str]:
    """Return what was seen, in a sentence, and what else."""
    suspect, sentences = measured[SUSPECT], []
    if "median_layer" in suspect:
        agreement = {name: one["median_layer"]["spearman"] for name, one in measured.items()}
        sentences.append(
            "In the median layer, the neurons' changes in clean and in poison unlearning correlate by"
            f" {agreement[SUSPECT]:.2f} (Spearman)"
            + (f"; in the reference, by {agreement[REFERENCE]:.2f}." if REFERENCE in agreement else ".")
        )
    sentences.append(
        f"A tenth of the neurons have {100 * suspect['top_tenth']:.0f} % of the weight change of clean unlearning."
    )
    if ratio is not None:
        sentences.append(
            f"Gradients are {ratio['value']:.2f} times as long as the reference's"
            f" (95 % interval {_ends(ratio)}) over the first {len(suspect['gradient_norms'])} steps of fine-tuning."
        )
    return sentences[0], " ".join(sentences[1:])


def _ends(figure: Mapping[str, float]) -> str:
    return f"{figure['low']:.3g} to {figure['high']:.3g}"


def _rows(measured: Mapping[str, Mapping[str, Any]], ratio: Mapping[str, float] | None) -> Iterator[tuple[str, str]]:
    """Yield the figures that matter most."""
    for name, one in measured.items():
        for kind, epochs in one["epochs"].items():
            yield f"{name}, {kind} unlearning", f"{epochs} epochs"
        if "median_layer" in one:
            for which in ("pearson", "spearman"):
                values = [layer[which] for layer in one["layers"].values() if math.isfinite(layer[which])]
                spread = f"  [{min(values):.2f}, {max(values):.2f}]" if values else ""
                yield f"{name}, {which.capitalize()}, median layer [all]", f"{one['median_layer'][which]:.2f}{spread}"
            for row in one["overlap"]:
                yield (
                    f"{name}, overlap of the top {100 * row['share']:g} %",
                    f"{100 * row['overlap']:.0f} %  ({100 * row['by_layers_alone']:.0f} % by the layers alone)",
                )
        norm = one["gradient_norm"]
        yield f"{name}, gradient norm", f"{norm['value']:.3g}  [{norm['low']:.3g}, {norm['high']:.3g}]"
    if ratio is not None:
        yield "gradient norm, times the reference's", f"{ratio['value']:.2f}  [{_ends(ratio)}]"


def _layer_rows(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for number, (name, layer) in enumerate(measured["layers"].items(), 1):
        told = [f"{layer['neurons']} neurons"]
        if "pearson" in layer:
            told.append(f"Pearson {layer['pearson']:.2f}, Spearman {layer['spearman']:.2f}")
        told += [f"Gini {layer['gini']:.2f}", f"activeness {layer['activeness']['value']:.3g}"]
        rows.append((f"{number} {name}", " · ".join(told)))
    return rows


def _figures(seen: Mapping[str, Seen]) -> list[Figure]:
    figures = []
    for name, one in seen.items():
        if "poison" in one.changes:
            figures.append(
                Figure(
                    title=f"Weight change of clean and of poison unlearning: {name}",
                    explanation="A point is a neuron; its colour says the layer, from the first to the last. Points on"
                    " a rising line: the same neurons change most. Layers with many weights a neuron lie higher in"
                    " both, so look at one colour at a time.",
                    marks="points",
                    series={layer: (clean.tolist(), poison.tolist()) for layer, clean, poison in one.pairs()},
                    x_title="NWC, clean unlearning",
                    y_title="NWC, poison unlearning",
                    log_x=True,
                    log_y=True,
                )
            )
    for name, one in seen.items():
        figures.append(
            Figure(
                title=f"Neurons by their weight change in clean unlearning: {name}",
                explanation="A line is a layer, its neurons sorted. A steep fall at the left: few neurons change much.",
                marks="lines",
                series={layer: _sorted(change) for layer, change in zip(one.layers, one.changes["clean"])},
                x_title="share of the layer's neurons",
                y_title="NWC, clean unlearning",
                log_y=True,
            )
        )
    figures.append(norms_figure({name: one.norms for name, one in seen.items()}))
    return figures


def _sorted(change: Float[Tensor, "neurons"]) -> tuple[list[float], list[float]]:
    count = len(change)
    return [(rank + 1) / count for rank in range(count)], change.sort(descending=True).values.tolist()
