"""Purifiers on a GPU: a planted backdoor goes there as it does on a processor."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from tests.planted import planted
from unbackdoor.evaluate import evaluate
from unbackdoor.purify import FTSAM, NPD, SAU, TSBD, Purifier
from unbackdoor.training import Runtime

METHODS = (
    SAU(rounds=6, batch_size=32, learning_rate=3e-3),
    NPD(epochs=20, batch_size=32, learning_rate=0.05),
    TSBD(unlearning_rate=1e-3, unlearning_epochs=30, epochs=15, batch_size=24, augmentation="crop"),
    FTSAM(epochs=10, batch_size=32, learning_rate=0.02, augmentation="crop"),
)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_planted_backdoor_is_weakened_on_a_gpu(
    method: Purifier, precision: Literal["bf16", "fp32"], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compilation would take longer than all else.
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    models = planted(1)
    runtime = Runtime(device="cuda", precision=precision, seed=1)
    repaired, _ = method.purify(models.suspect, models.data, runtime)
    after = evaluate(repaired, models.test, runtime, models.fitted.trigger, models.fitted.criterion)
    assert after.asr is not None
    assert after.asr.value < 0.3
    assert after.acc.value > 0.85
    assert next(repaired.parameters()).device.type == "cuda"
    assert next(models.suspect.parameters()).device.type == "cpu", "the suspect stays where it was"
