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
from tests.purify.stages import StopsIn
from unbackdoor.data import DefenderData, ImageSet, hold_out
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import NPD, Auto, Purifier
from unbackdoor.purify import auto as module
from unbackdoor.purify import probes as probing
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.probes import Probes, answers_to, find_probes, power, standing_out, successes
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


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass(frozen=True, kw_only=True)
class Stub(Purifier):
    """Gives the model the state that the class holds, and notes how many samples and minutes it was given."""

    state: ClassVar[dict[str, torch.Tensor]]
    calls: ClassVar[list[tuple[int, float | None]]]
    clock: ClassVar[Clock] = Clock()
    seconds: ClassVar[float] = 0.0
    interruptions: ClassVar[int] = 0

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        self.calls.append((len(data.need_clean("stub")), runtime.budget))
        self.clock.now += self.seconds
        if len(self.calls) <= self.interruptions:
            raise KeyboardInterrupt
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
    assert "changed answers that others share" not in suspect.evidence
    _, held = hold_out(models.data.need_clean("Test"), 0)
    assert history.candidates[3].accuracy == accuracy_on(models.twin, held, runtime())
    assert history.notes == (history.notes[0], "a note")
    assert history.notes[0].startswith(f"Auto tried CLP, TSBD, FTSAM and kept FTSAM. Class {models.target} ")
    assert history.epochs == 3


def test_where_no_class_stands_out_a_change_that_keeps_accuracy_is_better_than_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def noisy(model: Network, seed: int) -> Network:
    """Return a copy with other weights, by some per cent."""
    copied, draws = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1 + 0.03 * torch.randn(parameter.shape, generator=draws))
    return copied


def test_where_no_class_stands_out_all_are_tried_and_repairs_that_agree_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair that did nothing changes no answer, nobody shares those of a stray one, and a broken one has no vote."""
    models = planted(1)
    loner, broken = planted(2).twin, network(99)
    stubs = tried(
        monkeypatch,
        CLP=models.twin,
        TSBD=noisy(models.suspect, 1),
        NPD=noisy(models.suspect, 2),
        FTSAM=loner,
        SAU=broken,
    )
    options = Auto(methods=tuple(stubs), allowance=0.2)
    repaired, history = options.purify(models.twin, models.data, runtime())
    assert [len(one.calls) for one in stubs.values()] == [1] * 5
    heard = {one.name: one for one in history.candidates}
    (chosen,) = [one.name for one in history.candidates if one.chosen]
    assert chosen in ("TSBD", "NPD")
    assert same_state(state_of(repaired), stubs[chosen].state)
    like_suspect = {name: one.evidence["answers of the suspect"] for name, one in heard.items()}
    assert like_suspect["CLP"] == 1
    assert like_suspect["FTSAM"] < like_suspect[chosen], "or the distance from the suspect alone would do"
    kept, held = hold_out(models.data.need_clean("Test"), 0)
    probes = find_probes(models.twin, kept, held, runtime())
    answers = {name: answers_to(load(stubs[name]), probes, runtime()).flatten().tolist() for name in stubs}
    rest = [name for name in stubs if name not in (chosen, "SAU")]
    rows = list(zip(answers[chosen], probes.answers.flatten().tolist(), *(answers[name] for name in rest)))
    shared = sum(own == one for own, old, *others in rows for one in others if own != old)
    assert heard[chosen].evidence["changed answers that others share"] == pytest.approx(shared / 3 / len(rows))


def load(one: type[Stub]) -> Network:
    model = network(0).eval()
    model.load_state_dict(one.state)
    return model


def probed(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float) -> list[float | None]:
    """Let the search for probes of the first planted suspect take so long; return the budgets that it is given."""
    budgets: list[float | None] = []

    def find(model: Network, kept: ImageSet, held: ImageSet, runtime: Runtime) -> Probes:
        budgets.append(runtime.budget)
        clock.now += seconds
        return found(1)[1]

    monkeypatch.setattr(module, "find_probes", find)
    monkeypatch.setattr(module, "time", clock)
    return budgets


def test_no_candidate_learns_from_what_judges_it_and_what_is_left_of_a_budget_is_divided_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, clock = planted(1), Clock()
    budgets = probed(monkeypatch, clock, 6.0)
    stubs = tried(monkeypatch, TSBD=models.suspect, FTSAM=models.suspect, SAU=models.suspect)
    for one, seconds in zip(stubs.values(), (3.0, 60.0, 0.0)):
        one.clock, one.seconds = clock, seconds
    Auto(methods=tuple(stubs)).purify(models.suspect, models.data, replace(runtime(), budget=1.0))
    assert budgets == [pytest.approx(0.2)]
    # 54 s are left for three, then 51 s for two, and then nothing.
    calls = [call for one in stubs.values() for call in one.calls]
    assert calls == [(192, pytest.approx(0.3)), (192, pytest.approx(0.425)), (192, pytest.approx(0.01))]


def test_an_interrupted_repair_keeps_its_probes_and_the_minutes_of_each_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, clock = planted(1), Clock()
    budgets = probed(monkeypatch, clock, 6.0)
    stubs = tried(monkeypatch, TSBD=models.suspect, FTSAM=models.suspect)
    for one in stubs.values():
        one.clock, one.seconds = clock, 3.0
    stubs["FTSAM"].interruptions = 1
    method, limited = Auto(methods=tuple(stubs)), replace(runtime(), budget=1.0)
    with pytest.raises(KeyboardInterrupt):
        method.purify(models.suspect, models.data, limited, tmp_path / "resume.pt")
    clock.now += 1000.0
    method.purify(models.suspect, models.data, limited, tmp_path / "resume.pt")
    assert len(budgets) == 1
    assert [budget for _, budget in stubs["TSBD"].calls] == [pytest.approx(0.45)] * 2
    assert [budget for _, budget in stubs["FTSAM"].calls] == [pytest.approx(0.85)] * 2


def test_an_interrupted_repair_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    models, path, method = planted(1), tmp_path / "resume.pt", Auto(methods=("CLP", "FTSAM"))
    stopping = replace(runtime(), progress=StopsIn("FT-SAM", 50))
    with pytest.raises(KeyboardInterrupt):
        method.purify(models.twin, models.data, stopping, path)
    progress = StopsIn("nothing", 0)
    again, history = method.purify(models.twin, models.data, replace(runtime(), progress=progress), path)
    assert progress.totals == [51], "probes are not sought again, and finished epochs not done again"
    whole, expected = method.purify(models.twin, models.data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


@pytest.mark.parametrize(("classes", "total", "expected"), [((1, 4, 5), 8, 4), ((0, 1, 2), 3, None)], ids=str)
def test_a_class_that_was_not_searched_counts_as_the_least_of_the_others(
    classes: tuple[int, ...], total: int, expected: int | None
) -> None:
    """Successes of 0, 40 and 30 %: the median of three classes is 30 %, that of eight is 0."""
    _, probes = found(1)
    answers = torch.full((2, 3, len(probes.labels)), -1)
    for place, (one, percent) in enumerate(zip(classes, (0, 40, 30))):
        others = (probes.labels != one).nonzero().squeeze(1)
        answers[1, place, others[: percent * len(others) // 100]] = one
    few = replace(probes, classes=torch.tensor(classes), answers=answers, flagged=(), total=total)
    assert standing_out(few) == expected


def test_of_many_classes_few_are_probed_and_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = copy.deepcopy(planted(3).suspect), planted(3).target
    kept, held = hold_out(planted(3).data.need_clean("Test"), 0)
    sizes: list[int] = []
    model.normalize.register_forward_pre_hook(lambda module, images: sizes.append(len(images[0])))
    monkeypatch.setattr(probing, "MOST_CLASSES", 3)
    probes = find_probes(model, kept, held, runtime())
    assert max(sizes) == 3 * 64
    assert probes.classes.tolist() == sorted(set(probes.classes.tolist()))
    assert len(probes.classes) == len(probes.masks) == len(probes.patterns) == len(probes.changes) == 3
    place = probes.classes.tolist().index(target)
    assert place != target, "or this test could not tell a class from its place"
    assert standing_out(probes) == target
    assert power(probes.answers, probes, target) == float(successes(probes.answers, probes)[:, place].max())
    trigger = torch.lerp(probes.clean, probes.patterns[place], probes.masks[place])
    with torch.no_grad():
        led = planted(3).suspect(trigger).argmax(1) == target
    assert float(led[probes.labels != target].float().mean()) > 0.8


def test_a_repair_that_puts_a_layer_in_can_win_and_the_model_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    models, short = planted(1), NPD(epochs=2, warm_up_epochs=1)
    monkeypatch.setattr(module, "TRIED", {"NPD": lambda: short})
    kept, _ = hold_out(models.data.need_clean("Test"), 0)
    suspect = models.suspect
    for number in (1, 2):
        repaired, history = Auto(methods=("NPD",)).purify(suspect, models.data, runtime())
        expected, _ = short.purify(suspect, DefenderData(clean=kept), runtime())
        assert len(repaired.description.edits) == number
        assert repaired.description == expected.description
        assert same_state(state_of(repaired), state_of(expected))
        assert not any(layer.training for layer in repaired.modules())
        assert "a plug of the kind convbn" in history.notes[-1]
        suspect = repaired
    assert not models.suspect.description.edits


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
        ({"methods": ("FT",)}, "methods are"),
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
