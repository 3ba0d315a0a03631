"""Auto tries purifiers, and keeps the one that has left the fewest of the weak spots that the others took out."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.planted import CLASSES, NAMES, network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from unbackdoor.data import DefenderData, ImageSet, draw_clean, hold_out
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import NPD, Auto, Purifier
from unbackdoor.purify import auto as module
from unbackdoor.purify import court as court_module
from unbackdoor.purify import weak_spots as spots_module
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.weak_spots import weak_spots
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import History, Runtime


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
    augmented: ClassVar[list[str]]
    clock: ClassVar[Clock] = Clock()
    seconds: ClassVar[float] = 0.0
    interruptions: ClassVar[int] = 0
    augmentation: str = "none"

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        self.calls.append((len(data.need_clean("stub")), runtime.budget))
        self.augmented.append(self.augmentation)
        self.clock.now += self.seconds
        if len(self.calls) <= self.interruptions:
            raise KeyboardInterrupt
        model.load_state_dict(self.state)
        return History(epochs=3, notes=("a note",))


def stub(model: Network) -> type[Stub]:
    return type("Stub", (Stub,), {"state": copy.deepcopy(model.state_dict()), "calls": [], "augmented": []})


def tried(monkeypatch: pytest.MonkeyPatch, **models: Network) -> dict[str, type[Stub]]:
    stubs = {name: stub(model) for name, model in models.items()}
    monkeypatch.setattr(module, "TRIED", stubs)
    return stubs


def noisy(model: Network, seed: int) -> Network:
    """Return a copy with other weights, by some per cent."""
    copied, draws = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1 + 0.03 * torch.randn(parameter.shape, generator=draws))
    return copied


def test_the_repair_that_took_out_what_moves_the_others_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did nothing is moved by all, and a broken one, which nothing moves, has no vote and cannot win."""
    models = planted(1)
    broken = network(99)
    stubs = tried(monkeypatch, CLP=models.suspect, TSBD=broken, NPD=noisy(models.twin, 1), FTSAM=models.twin)
    repaired, history = Auto(methods=tuple(stubs)).purify(models.suspect, models.data, runtime())
    assert [len(one.calls) for one in stubs.values()] == [1] * 4
    heard = {one.name: one for one in history.candidates}
    assert list(heard) == ["as it was", *stubs]
    (chosen,) = [name for name, one in heard.items() if one.chosen]
    assert chosen in ("NPD", "FTSAM")
    assert same_state(state_of(repaired), stubs[chosen].state)
    assert heard["as it was"].evidence == {}
    assert heard["CLP"].evidence["weak spots left"] >= 1
    _, held = hold_out(models.data.need_clean("Test"), 0)
    assert heard["FTSAM"].accuracy == accuracy_on(models.twin, held, runtime())
    assert heard["TSBD"].accuracy < 0.5
    # The two good ones answer alike; with the one that did nothing they differ hardly more, as nothing is triggered.
    agreed = {name: one.evidence["answers as the other candidates"] for name, one in heard.items() if one.evidence}
    assert agreed["TSBD"] < 0.5 < agreed["FTSAM"] <= 1
    assert history.notes == (history.notes[0], "a note")
    assert history.notes[0].startswith(
        f"Auto tried CLP, TSBD, NPD, FTSAM and kept {chosen}. Of the suspect's weak spots"
    )
    assert history.epochs == 3


@pytest.mark.parametrize("stands_out", [True, False])
def test_weak_spots_left_are_the_share_of_those_that_others_took_out(
    stands_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By slow loops."""
    models = planted(2)
    if stands_out:
        # Planted backdoors take more than small changes.
        monkeypatch.setattr(spots_module, "RADIUS", spots_module.LONGER)
        monkeypatch.setattr(court_module, "STANDS_OUT", 0.1)
    # Whose turn comes is another test's.
    monkeypatch.setattr(court_module.Court, "enough", lambda *_: False)
    candidates = {"CLP": noisy(models.suspect, 1), "TSBD": models.twin, "FTSAM": noisy(models.twin, 2)}
    tried(monkeypatch, **candidates)
    _, history = Auto(methods=tuple(candidates), allowance=0.2).purify(models.suspect, models.data, runtime())
    kept, held = hold_out(models.data.need_clean("Test"), 0)
    few = draw_clean(held, min(128, len(held)), 0)
    ordered, classes = kept.in_canonical_order(), torch.arange(CLASSES)

    taken_out: dict[Network, Tensor] = {}

    def moved(model: Network, other: Network, stretched: float) -> list[float]:
        if other not in taken_out:
            taken_out[other] = weak_spots([models.suspect], [other], ordered, classes, runtime())
        return led(model, stretched * taken_out[other])

    def led(model: Network, spots: Tensor) -> list[float]:
        shares = []
        for one in range(CLASSES):
            others = torch.stack([image for image, label in zip(few.images, few.labels.tolist()) if label != one])
            answers = model((others / 255 + spots[one]).clamp(0, 1)).argmax(1)
            shares.append(int((answers == one).sum()) / len(others))
        return shares

    # Planted models are shared by all tests, and are to stay as they are.
    candidates = {name: copy.deepcopy(model).eval().requires_grad_(False) for name, model in candidates.items()}
    short = [moved(models.suspect, one, 1.0) for one in candidates.values()]
    excess = [sum(found[one] - median(found) for found in short) / 3 for one in range(CLASSES)]
    assert (max(excess) >= 0.1) is stands_out
    if stands_out:
        assert excess.index(max(excess)) == models.target

    def counted(model: Network, other: Network) -> float:
        if stands_out:
            found = moved(model, other, 1.0)
            return max(0.0, found[models.target] - median(found))
        return sum(moved(model, other, 2 / 32 / 0.035)) / CLASSES

    excess_of: dict[str, float] = {}
    for name, model in candidates.items():
        left = sum(counted(model, one) for key, one in candidates.items() if key != name) / 2
        expected = left / (sum(counted(models.suspect, one) for one in candidates.values()) / 3)
        if stands_out:
            unmoved = [one for key, one in candidates.items() if key != name]
            still = led(model, weak_spots([models.suspect, model], unmoved, ordered, classes, runtime()))
            excess_of[name] = still[models.target] - median(still)
            expected = max(expected, excess_of[name] if excess_of[name] >= 0.1 else 0.0)
        (told,) = [one for one in history.candidates if one.name == name]
        assert told.evidence["weak spots left"] == pytest.approx(expected, rel=1e-5)
    assert (f'the class "{NAMES[models.target]}", which stands out' in history.notes[0]) is stands_out
    # The one that is the suspect but for noise, and the two that never had the backdoor.
    assert [value >= 0.1 for value in excess_of.values()] == ([True, False, False] if stands_out else [])


def test_a_repair_that_took_out_what_was_found_and_left_the_backdoor_in_does_not_win(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Planted backdoors take more than small changes.
    monkeypatch.setattr(spots_module, "RADIUS", spots_module.LONGER)
    monkeypatch.setattr(court_module, "STANDS_OUT", 0.1)
    monkeypatch.setattr(court_module.Court, "_left", lambda *_: 0.0)
    models = planted(1)
    tried(monkeypatch, CLP=noisy(models.suspect, 1), TSBD=models.twin)
    _, history = Auto(methods=("CLP", "TSBD")).purify(models.suspect, models.data, runtime())
    left = {one.name: one.evidence["weak spots left"] for one in history.candidates[1:]}
    assert left["CLP"] >= 0.1
    assert left["TSBD"] == 0
    assert [one.name for one in history.candidates if one.chosen] == ["TSBD"]


def test_of_repairs_that_left_the_backdoor_in_and_a_dear_one_that_did_not_the_dear_one_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with few clean samples; and where there is none such, the report says that it may be left in."""
    # Planted backdoors take more than small changes.
    monkeypatch.setattr(spots_module, "RADIUS", spots_module.LONGER)
    monkeypatch.setattr(court_module, "STANDS_OUT", 0.1)
    models = planted(1)
    cheap = {"CLP": models.suspect, "FTSAM": noisy(models.suspect, 1)}
    dear = copy.deepcopy(models.twin)
    with torch.no_grad():
        # It gives one class up.
        last = [module for module in dear.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.bias[(models.target + 1) % CLASSES] -= 100
    tried(monkeypatch, **cheap, TSBD=dear)
    _, history = Auto(methods=("CLP", "FTSAM", "TSBD")).purify(models.suspect, models.data, runtime())
    assert [one.name for one in history.candidates if one.chosen] == ["TSBD"]
    assert "points of accuracy on held-out clean samples: cheaper ones left more" in history.notes[0]
    tried(monkeypatch, **cheap)
    _, history = Auto(methods=("CLP", "FTSAM")).purify(models.suspect, models.data, runtime())
    assert "so much that the backdoor may be left in" in history.notes[0]


def test_nothing_further_is_tried_once_little_enough_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that agree are not enough where no class stands out: both may have left the backdoor in."""
    models = planted(1)
    twins = {"TSBD": models.twin, "NPD": noisy(models.twin, 1), "FTSAM": models.suspect}
    for first, expected in (({"CLP": models.suspect}, [1, 1, 1, 0]), ({"CLP": network(99)}, [1, 1, 1, 1])):
        stubs = tried(monkeypatch, **first, **twins)
        Auto(methods=tuple(stubs), enough=0.5).purify(models.suspect, models.data, runtime())
        assert [len(one.calls) for one in stubs.values()] == expected


def test_two_are_enough_where_a_class_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Planted backdoors take more than small changes.
    monkeypatch.setattr(spots_module, "RADIUS", spots_module.LONGER)
    monkeypatch.setattr(court_module, "STANDS_OUT", 0.1)
    models = planted(1)
    for first, third in ((models.twin, 0), (models.suspect, 1)):
        stubs = tried(monkeypatch, CLP=first, TSBD=noisy(first, 1), NPD=models.twin)
        Auto(methods=tuple(stubs)).purify(models.suspect, models.data, runtime())
        assert len(stubs["NPD"].calls) == third


def test_of_two_the_one_that_changed_something_wins_and_of_broken_ones_the_least_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = planted(1)
    broken = network(99)
    for candidates, expected in (
        ({"CLP": models.suspect, "TSBD": models.twin}, models.twin),
        ({"CLP": models.twin, "TSBD": models.suspect}, models.twin),
        ({"CLP": models.suspect, "TSBD": broken}, models.suspect),
        ({"TSBD": broken}, broken),
    ):
        tried(monkeypatch, **candidates)
        repaired, history = Auto(methods=tuple(candidates)).purify(models.suspect, models.data, runtime())
        assert same_state(state_of(repaired), state_of(expected))
    assert history.notes[0].startswith(
        "Auto tried TSBD and kept TSBD. No other repair kept enough accuracy to judge it by. It cost 8"
    )
    assert history.notes[0].endswith("points of accuracy on held-out clean samples.")


def test_no_candidate_learns_from_what_judges_it_and_each_may_take_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models, clock = planted(1), Clock()
    monkeypatch.setattr(module, "time", clock)
    stubs = tried(monkeypatch, CLP=models.suspect, TSBD=models.suspect, FTSAM=models.suspect, SAU=models.suspect)
    for one, seconds in zip(stubs.values(), (6.0, 30.0, 12.0, 0.0)):
        one.clock, one.seconds = clock, seconds
    Auto(methods=tuple(stubs)).purify(models.suspect, models.data, replace(runtime(), budget=1.0))
    # Of 60, 54 and 24 s; 12 s are too few for another.
    calls = [call for one in stubs.values() for call in one.calls]
    assert calls == [(192, pytest.approx(0.65 * share)) for share in (1.0, 0.9, 0.4)]


def test_the_first_method_may_take_all_and_then_no_other_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    models, clock = planted(1), Clock()
    monkeypatch.setattr(module, "time", clock)
    stubs = tried(monkeypatch, TSBD=models.suspect, SAU=models.suspect)
    stubs["TSBD"].clock, stubs["TSBD"].seconds = clock, 100.0
    Auto(methods=tuple(stubs)).purify(models.suspect, models.data, replace(runtime(), budget=1.0))
    assert [len(one.calls) for one in stubs.values()] == [1, 0]


def test_an_interrupted_repair_keeps_the_minutes_of_each_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, clock = planted(1), Clock()
    monkeypatch.setattr(module, "time", clock)
    stubs = tried(monkeypatch, TSBD=models.suspect, FTSAM=models.suspect)
    for one in stubs.values():
        one.clock, one.seconds = clock, 3.0
    stubs["FTSAM"].interruptions = 1
    method, limited = Auto(methods=tuple(stubs)), replace(runtime(), budget=1.0)
    with pytest.raises(KeyboardInterrupt):
        method.purify(models.suspect, models.data, limited, tmp_path / "resume.pt")
    clock.now += 1000.0
    method.purify(models.suspect, models.data, limited, tmp_path / "resume.pt")
    assert [budget for _, budget in stubs["TSBD"].calls] == [pytest.approx(0.65)] * 2
    assert [budget for _, budget in stubs["FTSAM"].calls] == [pytest.approx(0.65 * 0.95)] * 2


def test_what_a_method_took_before_an_interruption_is_not_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, clock = planted(1), Clock()
    monkeypatch.setattr(module, "time", clock)
    stubs = tried(monkeypatch, CLP=models.suspect, TSBD=models.suspect, FTSAM=models.suspect)
    for one in stubs.values():
        one.clock, one.seconds = clock, 3.0
    stubs["TSBD"].interruptions = 2
    method, limited = Auto(methods=tuple(stubs)), replace(runtime(), budget=1.0)
    with pytest.raises(KeyboardInterrupt):
        method.purify(models.suspect, models.data, limited, tmp_path / "resume.pt")
    state, started = tmp_path / "resume-TSBD.pt", tmp_path / "resume-started-TSBD.pt"
    state.touch()

    def worked(seconds: float) -> None:
        """As if the last state had been written so long after the start."""
        begun = state.stat().st_mtime - seconds
        os.utime(started, (begun, begun))

    worked(17)
    with pytest.raises(KeyboardInterrupt):
        method.purify(models.suspect, models.data, limited, tmp_path / "resume.pt")
    # A day lies between: it does not count.
    worked(10)
    for one in (state, started):
        day_later = one.stat().st_mtime + 86400
        os.utime(one, (day_later, day_later))
    method.purify(models.suspect, models.data, limited, tmp_path / "resume.pt")
    assert [budget for _, budget in stubs["TSBD"].calls] == [pytest.approx(0.65 * 0.95)] * 3
    # 60 s less 3 of CLP, 17 and 10 before the interruptions and 3 after them.
    assert [budget for _, budget in stubs["FTSAM"].calls] == [pytest.approx(0.65 * 0.45, abs=1e-4)]


def test_methods_that_fine_tune_augment_as_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs and digits must not be mirrored; and methods without an augmentation are tried as well."""
    models = planted(1)
    for options, expected in (({}, "crop-flip"), ({"augmentation": "crop"}, "crop")):
        stubs = tried(monkeypatch, TSBD=models.twin)
        Auto(methods=("TSBD",), **options).purify(models.suspect, models.data, runtime())
        assert stubs["TSBD"].augmented == [expected]
    monkeypatch.undo()
    Auto(methods=("CLP",), augmentation="crop").purify(models.suspect, models.data, runtime())


def test_an_interrupted_repair_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    models, path, method = planted(1), tmp_path / "resume.pt", Auto(methods=("CLP", "FTSAM"))
    stopping = replace(runtime(), progress=StopsIn("FT-SAM", 50))
    with pytest.raises(KeyboardInterrupt):
        method.purify(models.twin, models.data, stopping, path)
    progress = StopsIn("nothing", 0)
    again, history = method.purify(models.twin, models.data, replace(runtime(), progress=progress), path)
    assert progress.totals == [51], "finished epochs are not done again"
    whole, expected = method.purify(models.twin, models.data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


def test_of_many_classes_those_that_a_short_search_leads_to_best_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    models = planted(3)
    asked: list[list[int]] = []

    def sought(
        moved: list[Network], unmoved: list[Network], clean: ImageSet, classes: Tensor, runtime: Runtime
    ) -> Tensor:
        asked.append(classes.tolist())
        return weak_spots(moved, unmoved, clean, classes, runtime)

    monkeypatch.setattr(court_module, "MOST_CLASSES", 3)
    monkeypatch.setattr(court_module, "weak_spots", sought)
    tried(monkeypatch, CLP=models.suspect, TSBD=models.twin)
    repaired, _ = Auto(methods=("CLP", "TSBD")).purify(models.suspect, models.data, runtime())
    assert [len(classes) for classes in asked] == [3, 3]
    assert models.target in asked[0]
    assert same_state(state_of(repaired), state_of(models.twin))


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


def test_methods_that_are_not_for_the_network_are_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CLP is for a transformer, which has no batch normalisation."""
    models = planted(1)

    class Refuses(Stub):
        def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
            raise InputError("this network has none")

    tried(monkeypatch, CLP=models.suspect, TSBD=models.twin)
    monkeypatch.setitem(module.TRIED, "CLP", Refuses)
    repaired, history = Auto(methods=("CLP", "TSBD")).purify(models.suspect, models.data, runtime())
    assert same_state(state_of(repaired), state_of(models.twin))
    assert "CLP was left out: this network has none." in history.notes
    with pytest.raises(InputError, match=r"none of its methods can repair this model\. CLP was left out"):
        Auto(methods=("CLP",)).purify(models.suspect, models.data, runtime())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ()}, "methods are"),
        ({"methods": ("CLP", "CLP")}, "methods are"),
        ({"methods": ("FT",)}, "methods are"),
        ({"allowance": 2.0}, "allowance"),
        ({"enough": -1.0}, "enough"),
        ({"augmentation": "cutmix"}, "TSBD"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Auto(**options)  # type: ignore[arg-type]


def test_two_classes_are_enough() -> None:
    model = network(0)
    images = pictures(40, 0)
    two = replace(images, labels=images.labels % 2, class_names=("a", "b"))
    description = replace(model.description, class_names=("a", "b"))
    body = torch.nn.Sequential(*list(model.body.children())[:-1], torch.nn.Linear(96, 2))
    suspect = Network(body, description)
    _, history = Auto(methods=("CLP", "FTSAM"), allowance=1.0).purify(suspect, DefenderData(clean=two), runtime())
    assert [len(one.evidence) for one in history.candidates] == [0, 2, 2]


@pytest.mark.parametrize(("classes", "sound"), [(2, [0.97, 0.75]), (10, [0.97, 0.75, 0.55])])
def test_a_model_that_guesses_has_no_vote(classes: int, sound: list[float]) -> None:
    court = court_module.Court.__new__(court_module.Court)
    court.held = replace(pictures(4, 0), labels=torch.arange(4) % classes, class_names=tuple(map(str, range(classes))))
    court.accuracy = 0.98
    court.heard = [SimpleNamespace(accuracy=one) for one in (0.97, 0.75, 0.55, 0.4)]  # type: ignore[misc]
    assert [one.accuracy for one in court.sound()] == sound
