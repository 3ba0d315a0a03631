"""What `test_every_option` tries: of each method short base options, and for each option another value.

Where nothing is said of an option, `another` chooses its value: twice a whole number, half of any other one, the other
truth value, the next of some names.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

PICTURE, PICTURES = Path("picture.png"), Path("pictures")
MODEL, LARGE_MODEL = Path("model.safetensors"), Path("large-model.safetensors")
TABLE, OTHER_TABLE = Path("table.json"), Path("other-table.json")
"""Files that the test makes."""


@dataclass(frozen=True)
class Other:
    """Another value of an option, and the other options with which it matters.

    Attributes:
        value: of the option.
        among: further options, with both values.
        refused: words of the refusal, where it is one.
    """

    value: Any
    among: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


def other(value: Any, **among: Any) -> Other:
    """Return another value, among further options."""
    return Other(value, among)


def refused(value: Any, words: str) -> Other:
    """Return a value that is refused with these words."""
    return Other(value, refused=words)


SHORT = {
    "batch_size": 32, "end_epochs": 1, "epochs": 1, "fine_batch_size": 32, "fine_epochs": 1, "head_batch_size": 32,
    "head_epochs": 1, "hidden": 16, "isolation_epochs": 1, "iterations": 8, "mask_steps": 2, "projection": 4,
    "rounds": 1, "steps": 2, "teacher_epochs": 1, "unlearning_epochs": 1, "warm_up_epochs": 1, "width": 4,
}  # fmt: skip
"""Values that make schedules short, by option."""

CLEAN_LABELS = {"sources": other((1,), labels="all-to-one"), "spare_target": other(True, labels="all-to-one")}
"""Attacks whose labels are clean poison images of the target class alone, unless they are told otherwise."""

CHOSEN = {"u": other(0.5, choose=False), "choose": other(False, u=0.5), "allowance": 0.9}
"""Either u is chosen, by the allowance, or it is used as it is."""

MASKED = {"by": "number", "values": (20.0,), "allowance": 1.0}
"""So many channels go whatever it costs: which ones these are shows the smallest difference of masks."""

BASE: dict[str, dict[str, Any]] = {
    "attack AdaptiveBlend": {"poison_rate": 0.1, "cover_rate": 0.1},
    "attack AdaptivePatch": {"poison_rate": 0.1, "cover_rate": 0.1},
    # The loss is below the first threshold from the beginning.
    "attack Blind": {"threshold": 10.0, "history": 2},
    "attack MESAPatch": {"poison_rate": 0.1},
    # Six periods on twelve columns are none.
    "attack SIG": {"periods": 2.0},
    # The first step of Adam has the same length whatever the loss weighs.
    "attack SSBA": {"epochs": 3},
    "attack TaCT": {"poison_rate": 0.1, "cover_rate": 0.1},
    "purify ANP": MASKED,
    # Few rows are held clean.
    "purify DBR": {"batch_size": 8},
    "purify RNP": {**MASKED, "unlearning_epochs": 2, "unlearned": 0.0, "unlearning_rate": 0.05, "epochs": 4},
    "scan NeuralCleanse": {
        "rounds": 12, "steps": 3, "batch_size": 8, "learning_rate": 0.5, "success": 0.4, "patience": 1,
        "stop_patience": 3,
    },
    "scan Verdict": {"table": TABLE},
    "secure DST": {"batch_size": 8},
    "sift ActivationClustering": {"dimensions": 4, "silhouette": -1.0, "largest": 0.5},
    "sift Beatrix": {"orders": 2, "references": 4},
    "sift LossIsolation": {"poisoned_share": 0.1},
    "sift STRIP": {"overlays": 4},
}  # fmt: skip
"""What is not as short as `SHORT` says, or lets options matter."""

OTHERS: dict[str, dict[str, Any]] = {
    "attack AdaptiveBlend": {"sources": (1,), "picture": PICTURE},
    "attack AdaptivePatch": {"sources": (1,), "opacities": (0.4, 0.2, 0.5, 0.3)},
    "attack AdaptiveTrap": {"sources": (1,), "pixels": other(40, norm="l0"), "clean_model": MODEL, "head": "3"},
    "attack BadNets": {"sources": (1,), "picture": PICTURE, "patch": other("grid", size=9), "margin": 3},
    "attack Blended": {"sources": (1,), "picture": PICTURE},
    "attack Blind": {"cover_rate": refused(0.1, "Blind has no covers"), "threshold": 1e-3},
    "attack CTRL": CLEAN_LABELS,
    "attack FTrojan": {"sources": (1,)},
    "attack Invisible": {"sources": (1,), "pixels": other(40, norm="l0"), "clean_model": MODEL},
    "attack LabelConsistent": {**CLEAN_LABELS, "clean_model": LARGE_MODEL},
    "attack LF": {"sources": (1,), "clean_model": MODEL},
    "attack LIRA": {"cover_rate": refused(0.1, "LIRA has no covers")},
    "attack MESAPatch": {"sources": (1,), "pattern": other(7, colors="black-and-white")},
    "attack Refool": {"sources": (1,), "pictures": PICTURES},
    "attack SIG": {**CLEAN_LABELS, "test_amplitude": 0.2},
    "attack Smooth": {"sources": (1,)},
    "attack SSBA": {"sources": (1,)},
    "attack TaCT": {
        "target": 2,
        "labels": refused("clean", "source classes need all-to-one labels"),
        "sources": (2,),
        "picture": PICTURE,
    },
    # Across the image, where the neurons see it.
    "attack TrojanNN": {
        "sources": (1,),
        "size": other(16, shape="square"),
        "picture": PICTURE,
        "steps": other(4, shape="watermark"),
        "step_size": other(0.05, shape="watermark"),
        "clean_model": MODEL,
    },
    "purify ANP": {
        "steps": other(10, epsilon=2.0),
        "alpha": 1.0,
        "by": "threshold",
        "values": (10.0,),
        "allowance": 0.0,
    },
    "purify BNP": CHOSEN,
    "purify CLP": CHOSEN,
    "purify EP": {**CHOSEN, "images": 48},
    "purify IBAU": {"perturbed": 0.5},
    "purify MCR": {"allowance": other(1.0, learning_rate=1.0)},
    "purify NPD": {
        "norm": other("Linf", bound=0.2),
        # Small ones, so that the search does not end before the last.
        "steps": other(4, step_size=1e-3),
        "before": "6",
    },
    "purify RNP": {
        "unlearned": 1.0,
        "epochs": 16,
        "learning_rate": 20.0,
        "alpha": 3.0,
        "by": "threshold",
        "values": (10.0,),
        "allowance": 0.0,
    },
    # From the bound all images are taken for another class at once.
    "purify SAU": {"steps": other(4, start="zero", step_size=0.01)},
    "purify TSBD": {"neurons": (0.9,)},
    "scan FourierProbes": {"highest": 2, "most_images": 8, "threshold": 0.5},
    "scan NeuralCleanse": {"success": 0.1, "stop_patience": 1, "threshold": -5.0, "most_classes": 3},
    "scan SmoothPerturbations": {"most_classes": 3, "threshold": 0.5},
    "scan TSBDSignals": {"most_images": 32},
    "scan UniversalPerturbations": {"most_classes": 3},
    "scan Verdict": {"table": OTHER_TABLE, "false_alarms": 0.5},
    "scan WeightStatistics": {"threshold": 0.01},
    "secure ABL": {"gamma": 5.0, "isolated": 0.5},
    "secure TrapAndReplace": {"head": "3"},
    "sift ActivationClustering": {"silhouette": 0.9, "largest": 0.1},
    "sift Consensus": {"threshold": 0.01},
    "sift LossIsolation": {"gamma": 5.0},
    "sift SPECTRE": {"dimensions": (1,)},
    "sift STRIP": {"false_alarms": 0.3},
}
"""Other values than those of `another`."""


REDUNDANT: dict[str, set[str]] = {
    # Images of the target are none of its source classes, so they are spared whether one asks for it or not.
    "attack TaCT": {"spare_target"},
}
"""Options that are no mistake, and change nothing."""

LEFT_OUT = {
    # They learn or search triggers for minutes before any of their other options counts.
    "purify MESA",
    "purify NCUnlearning",
    "purify PixelSpace",
    "scan MESA",
    # Several purifiers one after the other, which are here by themselves.
    "purify Auto",
}
"""Methods whose options are not tried here."""


MEANT: dict[str, dict[str, float]] = {
    # The attack begins at once.
    "attack Blind": {"threshold": math.inf},
    # Anomalies may lie below 0.
    "scan FourierProbes": {"threshold": -1.0},
    "scan NeuralCleanse": {"threshold": -1.0},
    "scan SmoothPerturbations": {"threshold": -1.0},
    "scan TSBDSignals": {"threshold": -1.0},
    "scan UniversalPerturbations": {"threshold": -1.0},
    "scan WeightStatistics": {"threshold": -1.0},
    # Of any two clusters.
    "sift ActivationClustering": {"silhouette": -1.0},
}
"""Values of the kinds that `impossible` returns and that mean something."""


SCALED = {"size": "0 x 0 pixels"}
"""What is told instead of a length of -1 that is scaled to the images."""


def base_of(name: str, method: type[Any]) -> dict[str, Any]:
    """Return the short options of a method, of which others differ in one."""
    short = {one.name: SHORT[one.name] for one in fields(method) if one.name in SHORT}
    return {**short, **BASE.get(name, {})}


def others_of(name: str, method: type[Any]) -> dict[str, Other]:
    """Return another value of each option."""
    base, told, hints = base_of(name, method), OTHERS.get(name, {}), get_type_hints(method)
    found = {}
    for one in fields(method):
        value = base.get(one.name, one.default)
        chosen = told[one.name] if one.name in told else another(one, value, hints[one.name])
        found[one.name] = chosen if isinstance(chosen, Other) else Other(chosen)
    return found


def another(option: Field[Any], value: Any, hint: Any) -> Any:
    """Return another value than this one, of the same kind."""
    if get_origin(hint) is Literal:
        names = get_args(hint)
        return names[(names.index(value) + 1) % len(names)]
    if option.name == "augmentation":
        return "none" if value != "none" else "crop"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value or 1
    if isinstance(value, float):
        return value / 2 or 0.1
    if isinstance(value, tuple) and len(value) > 1:
        return value[:-1]
    raise AssertionError(f"name another value of the option {option.name}, which is {value!r}, in OTHERS")


def impossible(option: str, value: Any) -> list[Any]:
    """Return values that are of the kind of this one and cannot be meant."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [-1, 0] if option.endswith("batch_size") else [-1]
    if isinstance(value, float):
        return [math.nan, math.inf, -1.0]
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        return [(math.nan,), (-1.0,)]
    if isinstance(value, str):
        return ["nonsense"]
    return [Path("nowhere")] if option in ("clean_model", "picture", "pictures", "table") else []
