"""MESA finds a hand-made backdoor, its target and its size, and says nothing of the same model without it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.patched import SIZE, TARGET, patched
from tests.planted import CLASSES, SHAPE, network, pictures, runtime
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.options import options_of, with_options
from unbackdoor.scan import MESA, SCANNERS, Finding
from unbackdoor.scan import mesa as module
from unbackdoor.scan.mesa import Screened, chosen_size, screen

SHORT = MESA(steps=200, batch_size=32, learning_rate=1e-3, hidden=48, finalists=2)
BRIEF = replace(SHORT, steps=2, batch_size=8, hidden=8)
DATA = DefenderData(clean=pictures(200, 7))


@pytest.fixture(scope="module")
def found() -> tuple[Finding, Finding]:
    one, other = (SHORT.scan(patched(strength), DATA, runtime()) for strength in (2.0, 0.0))
    return one, other


def test_the_target_of_the_backdoor_is_named_and_no_other_class(found: tuple[Finding, Finding]) -> None:
    finding = found[0]
    assert finding.backdoored is True
    assert finding.suspected == (TARGET,)
    assert int(finding.anomaly.argmax()) == TARGET
    assert finding.anomaly[TARGET] > 0.8
    assert not finding.calibrated
    assert f"class {TARGET}" in finding.reason
    assert "3 x 3" in finding.reason


def test_nothing_is_said_of_the_model_without_the_backdoor(found: tuple[Finding, Finding]) -> None:
    finding = found[1]
    assert finding.backdoored is False
    assert finding.suspected == ()
    assert "no evidence" in finding.reason


def test_distributions_are_there_for_the_most_suspicious_classes_alone(found: tuple[Finding, Finding]) -> None:
    for finding in found:
        targets = [one.target for one in finding.distributions]
        assert len(targets) == SHORT.finalists < CLASSES
        successes = [float(one.success.max()) for one in finding.distributions]
        assert successes == sorted(successes, reverse=True)
        assert [round(one, 4) for one in successes] == [round(float(finding.anomaly[c]), 4) for c in targets]
    assert found[0].distributions[0].target == TARGET
    assert found[0].distributions[0].betas == SHORT.betas


def test_reconstructions_are_one_a_class_a_patch_in_the_middle(found: tuple[Finding, Finding]) -> None:
    finding = found[0]
    assert [one.target for one in finding.reconstructions] == list(range(CLASSES))
    for one in finding.reconstructions:
        assert one.size == SIZE**2
        assert float(one.mask[:, 4:7, 4:7].min()) == 1
        assert one.pattern.shape == SHAPE
        assert 0 <= float(one.pattern.min()) <= float(one.pattern.max()) <= 1
    model = patched(2.0)
    clean = DATA.need_clean("test")
    worst = finding.reconstructions[TARGET]
    others = clean.images[clean.labels != TARGET].float() / 255
    with torch.no_grad():
        answers = model(torch.lerp(others, worst.pattern, worst.mask)).argmax(1)
    assert float((answers == TARGET).float().mean()) > 0.7


def test_the_record_has_the_numbers_behind_the_verdict(found: tuple[Finding, Finding]) -> None:
    record = found[0].to_json()
    assert record["trigger_side"] == SIZE
    assert len(record["screening"]["3"]) == CLASSES
    first = record["distributions"][0]
    assert first["target"] == TARGET
    assert sum(first["weights"]) == pytest.approx(1, abs=1e-3)
    assert len(first["success"]) == len(first["information"]) == len(SHORT.betas)


def test_an_unknown_size_is_swept_and_the_one_of_the_backdoor_chosen() -> None:
    """Smaller patches do not match the filter, larger ones hold one that does."""
    model = patched(2.0).requires_grad_(False)
    found = screen(model, DATA.need_clean("test"), torch.arange(CLASSES), (5, 1, 3), 0.9, runtime())
    assert list(found.tried) == [1, 3, 5]
    assert found.size == SIZE
    assert found.tried[1][TARGET] < 0.5 < found.tried[5][TARGET]
    assert found.patches.shape == (CLASSES, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("tried", "size"),
    [
        ({2: [0.1, 0.5, 0.1], 3: [0.1, 0.92, 0.2], 5: [0.5, 0.99, 0.9]}, 3),
        ({2: [0.1, 0.5, 0.1], 3: [0.1, 0.8, 0.2], 5: [0.5, 0.85, 0.8]}, 3),
        ({2: [0.1, 0.1, 0.1]}, 2),
    ],
)
def test_the_size_is_the_smallest_that_reaches_beta_or_that_where_a_class_stands_out(
    tried: dict[int, list[float]], size: int
) -> None:
    assert chosen_size({key: torch.tensor(values) for key, values in tried.items()}, 0.9) == size


@pytest.mark.parametrize(
    ("shares", "verdict", "suspected"),
    [
        ([0.1] * CLASSES, False, ()),
        ([0.1, 0.7, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1], True, (3, 1)),
        ([0.9] * 4 + [0.1] * 4, True, (0, 1, 2, 3)),
        ([0.9] * 5 + [0.1] * 3, None, ()),
    ],
)
def test_where_patches_lead_to_most_classes_the_answer_is_inconclusive(
    shares: list[float], verdict: bool | None, suspected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    success = torch.tensor(shares)
    patches = torch.rand(CLASSES, 3, 3, 3)
    given = Screened(size=3, patches=patches, success=success, tried={3: success}, shortened=False)
    monkeypatch.setattr(module, "screen", lambda *_: given)
    learned = MESA.distributions

    def as_given(self: MESA, model: Any, clean: Any, targets: list[int], size: int, runtime: Any) -> Any:
        made, steps = learned(self, model, clean, targets, size, runtime)
        return [replace(one, success=torch.full((3,), shares[one.target])) for one in made], steps

    monkeypatch.setattr(MESA, "distributions", as_given)
    finding = BRIEF.scan(network(0), DATA, runtime())
    assert finding.backdoored is verdict
    assert finding.suspected == suspected


def test_the_same_seed_says_the_same_and_another_does_not() -> None:
    one, again, other = (BRIEF.scan(network(0), DATA, runtime(seed)) for seed in (0, 0, 1))
    assert one.to_json() == again.to_json()
    assert one.to_json() != other.to_json()


def test_few_images_and_two_classes_will_do() -> None:
    model, few = network(0), pictures(6, 7)
    body = nn.Sequential(*list(model.body)[:-1], nn.Linear(model.body[-1].in_features, 2))
    two = Network(body, replace(model.description, class_names=("a", "b")))
    clean = replace(few, labels=few.labels % 2, class_names=("a", "b"))
    found = BRIEF.scan(two, DefenderData(clean=clean), runtime())
    assert len(found.anomaly) == 2
    assert found.anomaly.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": ()},
        {"sizes": (0,)},
        {"sizes": (3, 3)},
        {"betas": (1.0,)},
        {"betas": (0.5, 0.5)},
        {"betas": ()},
        {"steps": 0},
        {"batch_size": 1},
        {"finalists": -1},
        {"noise": 0.0},
        {"alpha": float("nan")},
        {"learning_rate": -1.0},
        {"threshold": 1.5},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^MESA: .* found "):
        MESA(**options)


def test_a_trigger_larger_than_the_images_is_refused() -> None:
    with pytest.raises(InputError, match="13 pixels does not fit images of 12 x 12"):
        MESA(sizes=(3, 13)).scan(network(0), DATA, runtime())


def test_without_clean_samples_it_says_what_it_needs() -> None:
    with pytest.raises(InputError, match="MESA needs clean samples"):
        BRIEF.scan(network(0), DefenderData(), runtime())


@pytest.fixture(scope="module")
def searched() -> tuple[Finding, Finding]:
    one, other = (MESA(finalists=0).scan(patched(strength), DATA, runtime()) for strength in (2.0, 0.0))
    return one, other


def test_the_search_alone_finds_a_backdoor_and_says_nothing_of_the_model_without_it(
    searched: tuple[Finding, Finding],
) -> None:
    assert searched[0].backdoored is True
    assert searched[0].suspected == (TARGET,)
    assert (searched[1].backdoored, searched[1].suspected) == (False, ())
    for finding in searched:
        assert (finding.distributions, finding.reconstructions) == ((), ())
        assert finding.to_json()["distributions"] == []


def test_tables_of_verdicts_can_name_the_search_alone() -> None:
    detector = MESA(finalists=0)
    options = json.loads(json.dumps(options_of(detector)))
    assert with_options(SCANNERS[options.pop("name")], options)() == detector


@pytest.mark.parametrize(
    ("screening_steps", "options"),
    [(10**7, {"finalists": 0}), (10**7, {"finalists": 2}), (1, {"finalists": 2, "steps": 10**7})],
    ids=["search alone", "search", "training"],
)
def test_a_budget_that_cuts_a_stage_short_is_told_of(
    screening_steps: int, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCREENING_STEPS", screening_steps)
    finding = replace(BRIEF, **options).scan(network(0), DATA, replace(runtime(), budget=1e-4))
    assert finding.shortened


def test_without_a_budget_nothing_is_cut_short(
    found: tuple[Finding, Finding], searched: tuple[Finding, Finding]
) -> None:
    assert not any(finding.shortened for finding in (*found, *searched))


def test_of_many_classes_some_are_searched_and_the_others_have_nothing_to_show() -> None:
    found = replace(SHORT, most_classes=3, finalists=0).scan(patched(2.0), DATA, runtime())
    assert found.evidence["searched"] == 3
    assert int((found.anomaly > 0).sum()) <= 3
    assert len(found.anomaly) == CLASSES
    whole = screen(
        patched(2.0).requires_grad_(False), DATA.need_clean("test"), torch.tensor([1, 4]), (3,), 0.9, runtime()
    )
    assert whole.patches.shape == (CLASSES, 3, 3, 3)
    assert [c for c in range(CLASSES) if whole.patches[c].any()] == [1, 4]
    assert set(whole.success.nonzero().flatten().tolist()) <= {1, 4}
