"""The page of a scan knows the attack: the attacker's own patch stands among the triggers that were learned."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.scan.test_trigger_distribution import distribution
from unbackdoor.attacks import AllToOne, SavedAttack
from unbackdoor.attacks.mesa_patch import Scattered
from unbackdoor.bench.images import truth_of
from unbackdoor.bench.pages import scan_page
from unbackdoor.evaluate import Evaluation, Proportion
from unbackdoor.report import render
from unbackdoor.scan import MESA, Finding


def saved() -> SavedAttack:
    """Return an attack by a patch."""
    return SavedAttack(
        trigger=Scattered(torch.rand(3, 2, 2)),
        criterion=AllToOne(target=2),
        kinds=torch.zeros(4, dtype=torch.uint8),
        original_labels=torch.zeros(4, dtype=torch.int64),
        image_shape=(3, 12, 12),
        options={"name": "MESAPatch"},
        sha256="",
    )


@pytest.mark.parametrize("known", [True, False])
def test_the_attackers_patch_is_drawn_where_it_is_known(known: bool) -> None:
    finding = Finding(
        backdoored=True,
        suspected=(2,),
        calibrated=False,
        anomaly=torch.tensor([0.1, 0.2, 0.9]),
        threshold=0.5,
        distributions=(distribution(),),
    )
    attack = saved()
    page = render(scan_page("t", MESA(), finding, ("a", "b", "c"), attack if known else None, known, {}))
    assert ("the original trigger" in page) is known
    assert ("The model is backdoored." if known else "The model is not backdoored.") in page
    assert "Triggers that were learned" in page


@pytest.mark.parametrize(
    ("marked", "success", "truth"), [(True, 0.9, True), (True, 0.03, None), (True, None, None), (False, None, False)]
)
def test_what_nobody_knows_is_neither_a_miss_nor_a_false_alarm(
    marked: bool, success: float | None, truth: bool | None
) -> None:
    """A marked model without its attack is not clean, and an attack that left no backdoor is none to find."""
    attack = None
    asr = None
    if success is not None:
        attack = saved()
        asr = Proportion(round(100 * success), 100)
    loaded = SimpleNamespace(backdoored={"attack": {}} if marked else None)
    assert truth_of(loaded, attack, Evaluation(acc=Proportion(9, 10), asr=asr)) is truth  # type: ignore[arg-type]
