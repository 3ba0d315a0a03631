"""Records as the store returns them, without a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.bench.noop import labels
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.store import Record
from unbackdoor.files import sha256

COST = {"seconds": 20.0, "peak_mb": 300.0}


def record(
    kind: str,
    metrics: Mapping[str, float],
    *,
    error: str = "",
    duration: float = 30.0,
    device: str = "cpu (a)",
    version: str = "0.1.0",
    commit: str = "",
    **changes: Any,
) -> Record:
    """Return what the store has of a cell, with the labels of image classifiers, some of them changed."""
    named = labels(**changes)
    key = sha256(repr((kind, sorted(named.items(), key=str))).encode())
    return Record(
        key=key,
        run=key[:32],
        domain="Images",
        kind=kind,
        labels=named,
        metrics=metrics,
        error=error,
        machine={"device": device, "unbackdoor": version},
        needs="",
        duration=duration,
        commit=commit,
    )


def repaired(method: str, der: float, *, acc: float = 0.9, asr: float = 0.1, ra: float = 0.8, **changes: Any) -> Record:
    """Return the record of a repaired victim; see `record`."""
    metrics = {"der": der, "acc": acc, "asr": asr, "ra": ra, **COST}
    return record("purify", metrics, **{"method": method, "clean_size": 50, **changes})


def scanned(
    method: str, *, backdoored: bool, flagged: bool | None, first: bool | None = None, **changes: Any
) -> Record:
    """Return the record of a scanned victim; `first`: whether the target is the first suspect. See `record`."""
    metrics = {"backdoored": float(backdoored), "anomaly": 2.0, **COST}
    if flagged is not None:
        metrics["flagged"] = float(flagged)
    if first is not None:
        metrics["target_first"] = float(first)
    attack = {} if backdoored else {"attack": "None", "poison_rate": None}
    return record("scan", metrics, **{"method": method, "clean_size": 50, **attack, **changes})


def trained(*, acc: float = 0.95, **changes: Any) -> Record:
    """Return the record of a victim; see `record`."""
    return record("victim", {"acc": acc, "asr": 0.99, "ra": 0.01, **COST}, **changes)


def done(cell: Cell, duration: float, *, error: str = "") -> Record:
    """Return the record of this very cell."""
    return Record(
        key=cell.key,
        run=cell.key[:32],
        domain=type(cell.domain).__name__,
        kind=cell.kind,
        labels=cell.labels,
        metrics={},
        error=error,
        machine={},
        needs=cell.needs.key if cell.needs else "",
        duration=duration,
    )


def secured(method: str, *, acc: float = 0.9, asr: float | None = 0.1, ra: float = 0.8, **changes: Any) -> Record:
    """Return the record of a model that was trained securely; without an ASR on clean data. See `record`."""
    attack: dict[str, Any] = {} if asr is not None else {"attack": "None", "poison_rate": None}
    shares = {"acc": acc} if asr is None else {"acc": acc, "asr": asr, "ra": ra}
    labels = {"method": method, "training": None, **attack, **changes}
    more = {name: labels.pop(name) for name in ("mse_clean", "mse_triggered") if name in labels}
    return record("secure", {**shares, **more, **COST}, **labels)


def sifted(method: str, auroc: float | None, *, tpr: float = 0.5, fpr: float = 0.0625, **changes: Any) -> Record:
    """Return the record of a sifting; without an AUROC of clean data. See `record`."""
    attack: dict[str, Any] = {} if auroc is not None else {"attack": "None", "poison_rate": None}
    found = {"auroc": auroc, "tpr_at_1": auroc / 2, "tpr": tpr} if auroc is not None else {}
    labels = {"method": method, "training": None, **attack, **changes}
    return record("sift", {**found, "fpr": fpr, "held": fpr, **COST}, **labels)
