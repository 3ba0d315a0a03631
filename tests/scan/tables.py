"""Calibration tables and findings made up for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unbackdoor.scan import Finding, UniversalPerturbations, WeightStatistics
from unbackdoor.scan.calibration import HeldOut, Measure, Table
from unbackdoor.scan.calibration_file import write_tables

TABLE = Table(
    name="planted models",
    data="pictures",
    classes=8,
    image_shape=(3, 12, 12),
    architecture="planted",
    arguments={},
    clean_size=60,
    precision="fp32",
    rate=0.05,
    detectors=(WeightStatistics(), UniversalPerturbations(steps=8, batch_size=8)),
    measures=(
        Measure(detector="UniversalPerturbations", number="anomaly", center=2.0, scale=0.5, weight=1.0),
        Measure(detector="WeightStatistics", number="anomaly", center=1.5, scale=0.5, weight=0.2),
        Measure(detector="WeightStatistics", number="channel", center=2.0, scale=0.5, weight=0.1),
    ),
    clean_scores=tuple(-1.0 + 0.05 * number for number in range(39)),
    clean_class_scores=tuple(-1.0 + 0.04 * number for number in range(39)),
    held_out=HeldOut(clean=60, alarms=2, backdoored=62, found=58, single_target=50, right_target=49),
)


def written(path: Path, *tables: Table) -> Path:
    """Write a file of tables, and return its path."""
    write_tables(path, tables or (TABLE,))
    return path


def finding(anomaly: Sequence[float], **more: Any) -> Finding:
    """Return what a detector could say."""
    plain = Finding(backdoored=None, suspected=(), calibrated=False, anomaly=torch.tensor(anomaly), threshold=3.5)
    return replace(plain, **more)


def findings(universal: Sequence[float], weights: Sequence[float], channel: float = 2.0) -> Mapping[str, Finding]:
    """Return what the detectors of `TABLE` could say."""
    return {
        "UniversalPerturbations": finding(universal),
        "WeightStatistics": finding(weights, statistics={"channel": channel}),
    }
