"""Auto probes the suspect, tries purifiers, and keeps the one that the probes and the clean samples speak for."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tests.planted import CLASSES, network, pictures, planted, runtime
from tests.scan.test_screening import many
from unbackdoor.data import DefenderData, hold_out
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import Auto, Purifier
from unbackdoor.purify import auto as module
from unbackdoor.purify import probes as probing
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.probes import Probes, answers_to, find_probes, power, standing_out, successes
from unbackdoor.scan import NeuralCleanse
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import History, Runtime


@lru_cache
def found(seed: int, twin: bool = False) -> tuple[Network, Probes]:
    models = planted(seed)
    model = models.twin if twin else models.suspect
    kept, held = hold_out(models.data.need_clean("Test"), 0)
    return model, find_probes(model, kept, held, runtime())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_class_of_a_planted_backdoor_stands_out_and_none_of_its_clean_twin(seed: int) -> None:
    _, probes = found(seed)
    assert standing_out(probes) == planted(seed).target
    assert standing_out(found(seed, twin=True)[1]) is None


def test_probes_do_what_their_answers_say_and_leave_the_suspect_alone() -> None:
    models = planted(1)
    before = state_of(models.suspect)
    model, probes = found(1)
    assert same_state(before, state_of(model))
    for number, images in enumerate(probes.images()):
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        with torch.no_grad():
            assert torch.equal(model(images).argmax(1), probes.answers.flatten(0, 1)[number])
    norms = probes.changes.flatten(1).norm(dim=1)
    assert float(norms.max()) <= 0.75 / 32 * 12 * (1 + 1e-5)


def test_every_class_has_a_trigger_of_its_own_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan by itself searches fewer of many classes, and gives the others all the same trigger."""
    monkeypatch.setattr(probing, "ROUNDS", 1)
    model, data = many(NeuralCleanse().most_classes + 2)
    kept, held = hold_out(data.need_clean("Test"), 0)
    masks = find_probes(model, kept, held, runtime()).masks  # type: ignore[arg-type]
    assert len({mask.numpy().tobytes() for mask in masks}) == len(masks) == NeuralCleanse().most_classes + 2


def test_success_counts_images_of_other_classes_only() -> None:
    """By a slow loop."""
    _, probes = found(2)
    expected = torch.zeros(2, CLASSES)
    for kind in range(2):
        for one in range(CLASSES):
            others = [n for n, label in enumerate(probes.labels.tolist()) if label != one]
            expected[kind, one] = sum(int(probes.answers[kind, one, n] == one) for n in others) / len(others)
    torch.testing.assert_close(successes(probes.answers, probes), expected)
    assert power(probes.answers, probes, 3) == pytest.approx(float(expected[:, 3].max()))
    assert power(probes.answers, probes, None) == pytest.approx(float(expected.amax(0).mean()))


def test_the_probes_lose_their_power_over_the_clean_twin() -> None:
    _, probes = found(1)
    suspected = planted(1).target
    over_twin = power(answers_to(planted(1).twin, probes, runtime()), probes, suspected)
    assert power(probes.answers, probes, suspected) > 0.8
    assert over_twin < 0.5


@dataclass(frozen=True, kw_only=True)
class Stub(Purifier):
    """Gives the model the state that the class holds, and counts how often."""

    state: ClassVar[dict[str, torch.Tensor]]
    calls: ClassVar[list[tuple[int, float | None]]]

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        self.calls.append((len(data.need_clean("stub")), runtime.budget))
        model.load_state_dict(self.state)
        return History(epochs=3, notes=("a note",))


def stub(model: Network) -> type[Stub]:
    return type("Stub", (Stub,), {"state": copy.deepcopy(model.state_dict()), "calls": []})


def tried(monkeypatch: pytest.MonkeyPatch, **models: Network) -> dict[str, type[Stub]]:
    stubs = {name: stub(model) for name, model in models.items()}
    monkeypatch.setattr(module, "TRIED", stubs)
    return stubs


def test_what_takes_the_probes_power_at_the_least_cost_wins_and_ends_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = planted(1)
    broken = network(99)
    stubs = tried(monkeypatch, CLP=models.suspect, TSBD=broken, FTSAM=models.twin, SAU=models.suspect)
    options = Auto(methods=("CLP", "TSBD", "FTSAM", "SAU"), enough=0.6)
    repaired, history = options.purify(models.suspect, models.data, runtime())
    assert same_state(state_of(repaired), state_of(models.twin))
    assert [len(one.calls) for one in stubs.values()] == [1, 1, 1, 0]
    assert [(one.name, one.chosen) for one in history.candidates] == [
        ("as it was", False),
        ("CLP", False),
        ("TSBD", False),
        ("FTSAM", True),
    ]
    suspect, unchanged = history.candidates[:2]
    assert suspect.evidence["power of the probes"] == unchanged.evidence["power of the probes"] > 0.8
    assert unchanged.evidence["answers of the suspect"] == 1
    assert "answers of the other repairs" not in suspect.evidence
    _, held = hold_out(models.data.need_clean("Test"), 0)
    assert history.candidates[3].accuracy == accuracy_on(models.twin, held, runtime())
    assert history.notes == (history.notes[0], "a note")
    assert history.notes[0].startswith(f"Auto tried CLP, TSBD, FTSAM and kept FTSAM. Class {models.target} ")
    assert history.epochs == 3


def test_where_no_class_stands_out_the_preferred_one_that_keeps_accuracy_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    models = planted(1)
    broken = network(99)
    for candidates, expected in (
        ({"CLP": models.twin, "TSBD": models.suspect}, models.suspect),
        ({"CLP": models.twin, "TSBD": broken}, models.twin),
        ({"TSBD": broken}, broken),
    ):
        tried(monkeypatch, **candidates)
        repaired, history = Auto(methods=tuple(candidates)).purify(models.twin, models.data, runtime())
        assert same_state(state_of(repaired), state_of(expected))
        assert "No class of the suspect stands out" in history.notes[0]


def test_no_candidate_learns_from_what_judges_it_and_the_budget_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    models = planted(1)
    stubs = tried(monkeypatch, TSBD=models.suspect, FTSAM=models.suspect)
    Auto(methods=("TSBD", "FTSAM")).purify(models.suspect, models.data, replace(runtime(), budget=0.3))
    calls = [call for one in stubs.values() for call in one.calls]
    assert calls == [(192, pytest.approx(0.16)), (192, pytest.approx(0.08))]


def test_doubts_about_the_clean_samples_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    models = planted(1)
    clean = models.data.need_clean("Test")
    wrong = DefenderData(clean=replace(clean, labels=(clean.labels + 1) % CLASSES))
    tried(monkeypatch, TSBD=models.suspect)
    _, history = Auto(methods=("TSBD",)).purify(models.suspect, wrong, runtime())
    assert len([note for note in history.notes if "sure of its answers" in note]) == 1


def test_a_planted_backdoor_is_taken_out(tmp_path: Path) -> None:
    models = planted(2)
    repaired, history = Auto(methods=("CLP",)).purify(models.suspect, models.data, runtime(), tmp_path / "state")
    before, after = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired)
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.1
    assert after.acc.value > 0.95
    assert [one.name for one in history.candidates if one.chosen] == ["CLP"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ()}, "methods are"),
        ({"methods": ("CLP", "CLP")}, "methods are"),
        ({"methods": ("NPD",)}, "methods are"),
        ({"allowance": 2.0}, "allowance"),
        ({"enough": -1.0}, "enough"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Auto(**options)  # type: ignore[arg-type]


def test_two_classes_cannot_be_compared() -> None:
    model = network(0)
    images = pictures(40, 0)
    two = replace(images, labels=images.labels % 2, class_names=("a", "b"))
    description = replace(model.description, class_names=("a", "b"))
    body = torch.nn.Sequential(*list(model.body.children())[:-1], torch.nn.Linear(96, 2))
    with pytest.raises(InputError, match="at least 3"):
        Auto(methods=("CLP",)).purify(Network(body, description), DefenderData(clean=two), runtime())
