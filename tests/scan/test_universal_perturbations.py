"""A planted target is the class that one small change leads to best, as seen on images that were not searched on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.planted import CLASSES, pictures, planted, runtime
from tests.refusals import refused
from tests.scan.tables import lead
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.scan import UniversalPerturbations
from unbackdoor.scan import universal_perturbations as module
from unbackdoor.scan.universal import odds_of


@pytest.mark.parametrize("seed", [1, 2, 4, 8])
def test_the_target_of_a_planted_patch_stands_out_and_no_class_of_its_twin_does(seed: int) -> None:
    models = planted(seed)
    found, twin = (
        UniversalPerturbations(radius=0.15).scan(one, models.data, runtime(seed))
        for one in (models.suspect, models.twin)
    )
    assert found.backdoored is True
    assert found.suspected[0] == models.target
    assert f"class {models.target}" in found.reason
    assert (twin.backdoored, twin.suspected) == (False, ())
    assert float(lead(found.numbers)) > 2 * float(lead(twin.numbers))
    assert not found.calibrated


def test_images_that_are_searched_on_do_not_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bytes]] = {}
    searching, judging = module.universal_perturbations, module.log_odds

    def keys(images: ImageSet) -> set[bytes]:
        return {row.contiguous().numpy().tobytes() for row in images.images}

    def search(model: object, images: object, *rest: object) -> object:
        seen["searched"] = {row.contiguous().numpy().tobytes() for row in images}  # type: ignore[attr-defined]
        return searching(model, images, *rest)  # type: ignore[arg-type]

    def judge(model: object, images: ImageSet, *rest: object) -> object:
        seen["judges"] = keys(images)
        return judging(model, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "universal_perturbations", search)
    monkeypatch.setattr(module, "log_odds", judge)
    clean = pictures(50, 5)
    UniversalPerturbations(steps=2, batch_size=4).scan(planted(1).twin, DefenderData(clean=clean), runtime())
    assert len(seen["searched"]) == len(seen["judges"]) == 25
    assert not seen["searched"] & seen["judges"]


def test_a_budget_shortens_the_search_and_the_finding_says_so() -> None:
    models = planted(1)
    found = UniversalPerturbations(steps=100_000).scan(models.twin, models.data, replace(runtime(), budget=0.001))
    assert found.shortened
    assert not UniversalPerturbations(steps=1).scan(models.twin, models.data, runtime()).shortened


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"steps": 0}, {"batch_size": 0}, {"most_classes": 2}])
def test_options_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    refused(UniversalPerturbations, options)


def test_two_classes_cannot_be_compared() -> None:
    clean = pictures(40, 5)
    two = ImageSet(images=clean.images, labels=clean.labels % 2, class_names=("a", "b"))
    with pytest.raises(InputError, match="at least 3"):
        UniversalPerturbations().inspect(planted(1).twin, DefenderData(clean=two), runtime())
    assert CLASSES > 2


def test_two_clean_images_will_do() -> None:
    """One is searched on and the other judges."""
    two = DefenderData(clean=pictures(2, 5))
    found = UniversalPerturbations(steps=2, batch_size=4).scan(planted(1).twin, two, runtime())
    assert len(found.anomaly) == CLASSES
    assert found.anomaly.isfinite().all()


def test_log_odds_are_exact_also_where_the_model_is_sure() -> None:
    logits = torch.tensor([[30.0, 0.0, -5.0], [1.0, 1.0, 1.0], [-40.0, 3.0, 2.0]])
    shares = logits.double().softmax(1)
    expected = (
        shares.log()
        - torch.stack([shares[:, [1, 2]].sum(1), shares[:, [0, 2]].sum(1), shares[:, [0, 1]].sum(1)], 1).log()
    )
    torch.testing.assert_close(odds_of(logits).double(), expected, rtol=1e-5, atol=1e-5)
