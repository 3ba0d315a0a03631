"""Verdict: one calibrated answer from several scanners. Ours.

Every scanner sees some backdoors and not others, and has a threshold of its own whose false-alarm rate nobody knows.
The verdict runs several on the same clean samples, adds up by how much each class exceeds what is usual of that class
in clean models of the same kind, and compares the largest sum with theirs: the answer is a p-value, and "backdoored" if
that is at most the share of clean models that one is ready to accuse. `calibration` has the formulas, and says why they
hold.

What is usual comes from a zoo of small clean models (`bench/calibrate.py`). Why not Fisher's or Cauchy's combination of
one p-value a scanner: from n clean models no p-value is below 1 / (n + 1), so a scanner whose number lies far beyond
all of theirs would count as one that lies just beyond; and neither knows that two scanners point at the same class.
What the sum gets wrong costs power, never the false-alarm rate, which the comparison keeps.

Where no table fits the model, nobody knows how often the verdict is wrong: the finding says so (`calibrated` is
false), and its answer is inconclusive. If the nearest table has the same classes and images, the model is compared with
its models, and classes that stand out are named as a hint, and no more. Else there is nothing to compare with, and what
the scanners say by their own thresholds is all there is.

So who names no scanner gets the verdict only where a table fits (see `default_scanner`).

Who is told of a suspected class wants to see its trigger. Where the table does without Neural Cleanse, it runs
afterwards, and what it says is shown and not weighed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from unbackdoor.conformal import allowed_above
from unbackdoor.data import DefenderData, draw_clean
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan.base import Finding, Reconstruction, Scanner
from unbackdoor.scan.calibration import Table, compared, nearest
from unbackdoor.scan.calibration_file import SHIPPED, read_tables
from unbackdoor.scan.fourier_probes import FourierProbes
from unbackdoor.scan.neural_cleanse import NeuralCleanse
from unbackdoor.scan.smooth_perturbations import SmoothPerturbations
from unbackdoor.scan.tsbd_signals import TSBDSignals
from unbackdoor.scan.universal_perturbations import UniversalPerturbations
from unbackdoor.scan.weight_statistics import WeightStatistics
from unbackdoor.training import Runtime

DETECTORS: tuple[Scanner, ...] = (
    WeightStatistics(),
    UniversalPerturbations(),
    SmoothPerturbations(),
    FourierProbes(),
    TSBDSignals(),
    NeuralCleanse(rounds=30, steps=3, batch_size=16, patience=3, stop_patience=12, most_classes=16),
)
"""What tables are made with: a scan of seconds; any other registered scanners can be named instead."""
FOR_TRIGGERS = DETECTORS[-1:]
"""What reconstructs the trigger of a suspected class where the table's detectors do without Neural Cleanse."""
LEAST_SHARE = 1e-3
"""Of a budget, for a detector whose turn comes after it is spent."""


@dataclass(frozen=True, kw_only=True)
class Verdict(Scanner):
    """Run several scanners, add up what they say, and compare it with clean models of the same kind.

    Attributes:
        false_alarms: share of clean models that may be called backdoored, above 0 and below 1; that at which the table
            was judged if None.
        table: file of calibration tables; those of the package if None.
    """

    false_alarms: float | None = None
    table: Path | None = None

    # What is usual is of each class now, and was of the largest before.
    revision: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if self.false_alarms is not None and not 0 < self.false_alarms < 1:
            raise InputError(f"Verdict: the share of false alarms lies above 0 and below 1, found {self.false_alarms}")

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Return the verdict (see `Scanner.scan`).

        The clean images are taken to be new to the model, as those of the table were.
        """
        clean = data.need_clean("Verdict")
        table = nearest(read_tables(self.table or SHIPPED), model.description, len(clean), runtime.precision)
        rate = table.rate if self.false_alarms is None else self.false_alarms
        if not allowed_above(rate, table.clean_models):
            raise InputError(
                f"the table for this model has {table.clean_models} clean models, which allow a share of false alarms"
                f" of {1 / (1 + table.clean_models):.3g} or more, found {rate:g}; raise it, or name a larger table"
            )
        misfits = table.misfits(model.description, len(clean), runtime.precision)
        given = replace(data, clean=draw_clean(clean, min(table.clean_size, len(clean)), runtime.seed))
        seconds: dict[str, float] = {}
        findings, told = _hear(table.detectors, model, given, runtime, seconds)
        if not findings:
            raise InputError(f"none of the verdict's scanners can look at this model; {told[0]['reason']}")
        missing = [one["name"] for one in told if one["anomaly"] is None]
        if missing:
            misfits.append(f"no word from {' and '.join(missing)}")
        if any(finding.shortened for finding in findings.values()):
            misfits.append("searches that the budget cut short")
        calibration = {
            "name": table.name,
            "data": table.data,
            "clean_models": table.clean_models,
            "rate": table.rate,
            "held_out": vars(table.held_out),
            "misfits": misfits,
        }
        if table.comparable(model.description):
            _check_rows(table, findings)
            finding = _compared(table, rate, misfits, findings)
        else:
            finding = _uncompared(table, misfits, findings)
        finding = replace(
            finding,
            reconstructions=_reconstructions(findings),
            shortened=any(one.shortened for one in findings.values()),
            seconds=seconds,
            evidence={**finding.evidence, "detectors": told, "calibration": calibration},
        )
        if not finding.suspected or any(isinstance(one, NeuralCleanse) for one in table.detectors):
            return finding
        triggers, said = _hear(FOR_TRIGGERS, model, given, runtime, seconds)
        told += [{**one, "weighed": False} for one in said]
        return replace(finding, reconstructions=_reconstructions(triggers))


def default_scanner(model: Network, data: DefenderData, runtime: Runtime) -> Scanner:
    """Return the scanner for who names none: the verdict where a table of the package fits, Neural Cleanse elsewhere.

    Args:
        model: that will be scanned.
        data: what there is; its clean images count.
        runtime: its precision counts.
    """
    images = 0 if data.clean is None else len(data.clean)
    table = nearest(read_tables(SHIPPED), model.description, images, runtime.precision)
    return NeuralCleanse() if table.misfits(model.description, images, runtime.precision) else Verdict()


def _hear(
    detectors: Sequence[Scanner], model: Network, data: DefenderData, runtime: Runtime, seconds: dict[str, float]
) -> tuple[dict[str, Finding], list[dict[str, Any]]]:
    """Return the findings of detectors by name, and what is told of each; how long each took is added to `seconds`."""
    findings: dict[str, Finding] = {}
    told = []
    for number, detector in enumerate(detectors):
        name = type(detector).__name__
        said: dict[str, Any] = {"name": name, "weighed": True, "anomaly": None, "class": None, "backdoored": None}
        start = time.perf_counter()
        try:
            findings[name] = finding = detector.scan(model, data, _part(runtime, seconds, len(detectors) - number))
            largest = round(float(finding.anomaly.max()), 4)
            said |= {"anomaly": largest, "class": int(finding.anomaly.argmax()), "backdoored": finding.backdoored}
            told.append({**said, "reason": finding.reason})
        except InputError as error:
            told.append({**said, "reason": str(error)})
        seconds[name] = time.perf_counter() - start
    return findings, told


def _check_rows(table: Table, findings: dict[str, Finding]) -> None:
    """Refuse a table whose detectors gave other numbers of a class than they give now, or that is damaged."""
    for name, finding in findings.items():
        rows, known = len(finding.numbers), table.clean[name].shape[1]
        if rows != known:
            raise InputError(
                f"{name} gives {rows} numbers of each class and the calibration table has {known}; make the table again"
            )


def _compared(table: Table, rate: float, misfits: list[str], findings: dict[str, Finding]) -> Finding:
    """Return the answer of the comparison with the table's clean models."""
    comparison = compared(table.clean, findings)
    suspected = comparison.suspected(rate)
    return Finding(
        backdoored=None if misfits else bool(suspected),
        suspected=suspected,
        calibrated=not misfits,
        anomaly=comparison.scores.float(),
        threshold=comparison.threshold(rate),
        reason=_reason(table, rate, misfits, comparison.p_value, suspected),
        evidence={"p_value": comparison.p_value, "false_alarms": rate},
    )


def _uncompared(table: Table, misfits: list[str], findings: dict[str, Finding]) -> Finding:
    """Return what there is to say of a model of classes or images that no table has: what most scanners suspect."""
    suspicions = torch.stack([one.anomaly.float().cpu() > one.threshold for one in findings.values()]).sum(0).float()
    suspected = tuple(
        int(c) for c in suspicions.argsort(descending=True, stable=True) if 2 * suspicions[c] > len(findings)
    )
    if suspected:
        found = f"{int(suspicions[suspected[0]])} of {len(findings)} scanners suspect class {suspected[0]}"
    else:
        found = "no class is suspected by more than half of the scanners"
    return Finding(
        backdoored=None,
        suspected=suspected,
        calibrated=False,
        anomaly=suspicions,
        threshold=len(findings) / 2,
        reason=f"{found}, each by its own threshold, which proves little: there are no clean models to compare with, as"
        f" the nearest table ({table.name}) is for others; this scan has {', '.join(misfits)}",
    )


def _reason(table: Table, rate: float, misfits: list[str], p_value: float, suspected: tuple[int, ...]) -> str:
    """Return the answer in a sentence or two."""
    count = table.clean_models
    if misfits:
        answer = (
            f"class {suspected[0]} stands out (p = {p_value:.3g})"
            if suspected
            else f"no class stands out (p = {p_value:.3g})"
        )
        return (
            f"{answer}, which proves little: not calibrated for this scan, which has {', '.join(misfits)}; compared"
            f" with the nearest kind of model that there is a table for ({table.name})"
        )
    if suspected:
        return (
            f"at most {100 * p_value:.2g} % of clean models like those of the table look as unusual as this one"
            f" (p = {p_value:.3g}, from {count} clean models: {table.name}); class {suspected[0]} stands out"
        )
    return f"no evidence found: p = {p_value:.3g}, from {count} clean models ({table.name}){_power(table, rate)}"


def _power(table: Table, rate: float) -> str:
    """Return what the verdict finds of backdoored models, where that was measured at this rate of false alarms."""
    if table.rate != rate or not table.held_out.backdoored:
        return ""
    return f"; it finds {table.held_out.found} of {table.held_out.backdoored} backdoored ones"


def _part(runtime: Runtime, seconds: dict[str, float], waiting: int) -> Runtime:
    """Return a runtime with an equal share of what is left of the budget, for a detector of those that wait."""
    if runtime.budget is None:
        return runtime
    left = max(0.0, 1 - sum(seconds.values()) / (60 * runtime.budget))
    return runtime.part(max(LEAST_SHARE, left / waiting))


def _reconstructions(findings: dict[str, Finding]) -> tuple[Reconstruction, ...]:
    """Return the triggers of the first detector that found some."""
    return next((one.reconstructions for one in findings.values() if one.reconstructions), ())
