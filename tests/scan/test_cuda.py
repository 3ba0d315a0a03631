"""Scanners on a GPU: the class that stands out there is the one that does on a processor."""

from __future__ import annotations

import pytest
import torch

from tests.planted import CLASSES, planted
from tests.test_conformance import shortened
from unbackdoor.data import DefenderData
from unbackdoor.scan import SCANNERS
from unbackdoor.training import Runtime


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in SCANNERS if name != "Verdict"])
def test_the_same_class_stands_out_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compilation would take longer than all else.
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    models, scanner = planted(1), shortened(SCANNERS[name]())
    data = DefenderData(clean=models.data.clean)
    found = scanner.scan(models.suspect, data, Runtime(device="cuda", precision="fp32", seed=1))
    expected = scanner.scan(models.suspect, data, Runtime(device="cpu", precision="fp32", seed=1))
    assert found.anomaly.shape == (CLASSES,)
    assert found.numbers.shape == expected.numbers.shape
    assert {found.anomaly.device.type, found.numbers.device.type} == {"cpu"}
    assert bool(found.numbers.isfinite().all())
    assert int(found.anomaly.argmax()) == int(expected.anomaly.argmax())
    assert {one.mask.device.type for one in found.reconstructions} <= {"cpu"}
    assert next(models.suspect.parameters()).device.type == "cpu", "the suspect stays where it was"
