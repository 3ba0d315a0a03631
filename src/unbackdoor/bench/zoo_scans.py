"""What the detectors say of the models of a zoo: each looks at every one, once, and is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unbackdoor.bench.zoo import Part, append, claimed, entry_of, kept_back, rows_of
from unbackdoor.data import DefenderData, ImageSet, draw_clean
from unbackdoor.errors import InputError
from unbackdoor.models import load_model
from unbackdoor.options import options_of, revision_of
from unbackdoor.scan import Finding, Scanner
from unbackdoor.scan.calibration import short
from unbackdoor.training import Runtime, Silent, UserNetwork, architecture_of

Looked = tuple[Mapping[str, Any], list[dict[str, Any]]]
"""A row of the zoo's index, and those of the scans of its model."""

SCANS = "scans.jsonl"
"""Name of the file with what detectors said, in a zoo's folder."""
SAID = frozenset({"key", "model", "detector", "clean_size"})
"""What every row of these has."""
CLEAN_SIZES = (50, 250)
"""Clean images that the detectors get, a table for each: who has few uses one, and who has many the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scanned:
    """A model of a zoo, and what the detectors say of it.

    Attributes:
        key: of the model.
        network: its name.
        part: what it is for; see `Entry.part`.
        attack: name, or None.
        backdoored: whether it is.
        target: the one class that the attacker wants, or None.
        findings: by the detectors' names.
        seconds: all detectors together.
    """

    key: str
    network: str
    part: Part | None
    attack: str | None
    backdoored: bool
    target: int | None
    findings: Mapping[str, Finding]
    seconds: float

    @classmethod
    def of(cls, row: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]) -> Scanned:
        """Return what a row of the index and the rows of its scans tell."""
        findings = {
            scan["detector"]: Finding(
                backdoored=scan["flagged"],
                suspected=tuple(scan["suspected"]),
                calibrated=False,
                anomaly=torch.tensor(scan["anomaly"]),
                threshold=scan["threshold"],
                numbers=torch.tensor(scan["numbers"]),
            )
            for scan in scans
            if "refused" not in scan
        }
        return cls(
            key=row["key"],
            network=row["network"],
            part=entry_of(row).part,
            attack=row["attack"],
            backdoored=row["backdoored"],
            target=row["target"],
            findings=findings,
            seconds=sum(scan.get("seconds", 0.0) for scan in scans),
        )


def scan_zoo(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    networks: Sequence[partial[Any]],
    train: ImageSet,
    detectors: Sequence[Scanner],
    clean_size: int,
    runtime: Runtime,
) -> list[Looked]:
    """Let the detectors look at the models of a zoo, each with clean images of those that were kept back from it.

    What was done before is not done again; several processes share the work.

    Args:
        out: the zoo's folder.
        rows: of its index; those without a model, or with an attack that failed, are left out.
        networks: that the zoo was made with; code of the user's runs for these alone, whatever the rows say.
        train: the zoo's training images.
        detectors: which.
        clean_size: clean images that they get.
        runtime: device and precision; seeds are the models' own.

    Returns:
        Each model's row with those of its scans; without the models that another process is at.
    """
    usable = usable_of(rows)
    code = {architecture_of(network) for network in networks if isinstance(network, UserNetwork)}
    with runtime.progress.bar("scans", len(usable)) as advance:
        for row in usable:
            todo = {scan_key(row, detector, clean_size): detector for detector in detectors}
            with claimed(out, f"scan-{row['key']}-{clean_size}") as mine:
                done = _heard(out).keys() if mine else todo.keys()
                for key, detector in todo.items():
                    if key not in done:
                        append(out / SCANS, _scan(out, row, key, code, train, detector, clean_size, runtime))
            advance()
    return looked_at(out, rows, detectors, clean_size)


def looked_at(
    out: Path, rows: Sequence[Mapping[str, Any]], detectors: Sequence[Scanner], clean_size: int
) -> list[Looked]:
    """Return the rows of a zoo's usable models that all detectors have looked at, each with those of its scans.

    Args:
        out: the zoo's folder.
        rows: of its index.
        detectors: which.
        clean_size: clean images that they got.
    """
    scans = _heard(out)
    wanted = [
        (row, [scans.get(scan_key(row, detector, clean_size)) for detector in detectors]) for row in usable_of(rows)
    ]
    return [(row, [one for one in said if one]) for row, said in wanted if all(said)]


def _heard(out: Path) -> dict[str, dict[str, Any]]:
    """Return the scans of a zoo by their keys; those of versions that did not keep the numbers are to be done again."""
    return {scan["key"]: scan for scan in rows_of(out / SCANS, SAID) if "numbers" in scan or "refused" in scan}


def usable_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows whose models have a part: neither refused by their attack, nor with one that failed."""
    return [row for row in rows if row.get("backdoored") is not None and entry_of(row).part is not None]


def sizes_for(train: ImageSet) -> tuple[int, ...]:
    """Return the numbers of clean images that detectors get of a zoo on these images, ascending."""
    kept = len(kept_back(train, 0)[1])
    return tuple(sorted({min(size, kept) for size in CLEAN_SIZES}))


def scan_key(row: Mapping[str, Any], detector: Scanner, clean_size: int) -> str:
    """Return what tells a scan of a model from others: of another detector, revision, or number of clean images."""
    revision = "".join(f"{name} {number} " for name, number in revision_of(detector).items())
    return f"{row['sha256']} {clean_size} {revision}{options_of(detector)}"


def _scan(
    out: Path,
    row: Mapping[str, Any],
    key: str,
    code: set[str],
    train: ImageSet,
    detector: Scanner,
    clean_size: int,
    runtime: Runtime,
) -> dict[str, Any]:
    loaded = load_model(out / row["file"], arch=row["network"] if row["network"] in code else None)
    if loaded.sha256 != row["sha256"]:
        raise InputError(f"{out / row['file']} is another file than the one in the index; make the zoo again")
    quiet = replace(runtime, seed=row["seed"], budget=None, progress=Silent())
    clean = draw_clean(kept_back(train, row["seed"])[1], clean_size, row["seed"])
    start = time.perf_counter()
    scan = {"key": key, "model": row["key"], "detector": type(detector).__name__, "clean_size": clean_size}
    try:
        finding = detector.scan(loaded.network, DefenderData(clean=clean), quiet)
    except InputError as error:
        return {**scan, "refused": str(error)}
    return {
        **scan,
        "anomaly": finding.anomaly.tolist(),
        "numbers": short(finding.numbers),
        "threshold": finding.threshold,
        "flagged": finding.backdoored,
        "suspected": list(finding.suspected),
        "seconds": round(time.perf_counter() - start, 2),
    }
