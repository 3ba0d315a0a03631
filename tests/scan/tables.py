"""Calibration tables and findings made up for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tests.planted import NAMES
from unbackdoor.scan import Finding, UniversalPerturbations, WeightStatistics
from unbackdoor.scan.calibration import HeldOut, Table
from unbackdoor.scan.calibration_file import write_tables

CLASSES = 8


def clean_numbers(models: int, seed: int = 0) -> Float[Tensor, "n 1 k"]:
    """Return what a detector could say of clean models: numbers whose largest is nowhere twice the same."""
    return torch.randn(models, 1, CLASSES, generator=torch.Generator().manual_seed(seed))


TABLE = Table(
    name="planted models",
    data="pictures",
    class_names=NAMES,
    image_shape=(3, 12, 12),
    architecture="planted",
    arguments={},
    clean_size=60,
    precision="fp32",
    rate=0.05,
    detectors=(WeightStatistics(), UniversalPerturbations(steps=8, batch_size=8)),
    clean={"WeightStatistics": clean_numbers(39, 1), "UniversalPerturbations": clean_numbers(39, 2)},
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


def findings(universal: Sequence[float], weights: Sequence[float]) -> Mapping[str, Finding]:
    """Return what the detectors of `TABLE` could say."""
    return {"UniversalPerturbations": finding(universal), "WeightStatistics": finding(weights)}


def lead(numbers: Float[Tensor, "m k"]) -> Float[Tensor, ""]:
    """Return by how much the largest number exceeds that of the class in the middle."""
    return (numbers.amax(1) - numbers.quantile(0.5, dim=1)).amax()
