"""What `Weights` measures, on small models with a known backdoor and their clean twins."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.inspect.known import Known, material
from tests.planted import CLASSES, network, pictures, planted, runtime
from tests.training.test_resume import Stops
from unbackdoor.attacks import AllToOne, Stamp
from unbackdoor.errors import InputError
from unbackdoor.inspect import INSPECTIONS, Insight, Weights
from unbackdoor.inspect.agreement import correlations
from unbackdoor.inspect.compared import triggered
from unbackdoor.models import Network
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Runtime, logits_of
from unbackdoor.training.unlearning import unlearned

QUICK = Weights(unlearning_epochs=40, unlearning_rate=0.003, epochs=2, batch_size=60, shares=(0.1, 0.2))


@lru_cache
def seen() -> Insight:
    return QUICK.inspect(planted(1).suspect, material(), runtime())


def test_it_is_registered() -> None:
    assert INSPECTIONS["Weights"] is Weights


def test_correlations_are_those_of_weights_before_and_after_unlearning_once_more() -> None:
    models = planted(1)
    assert models.data.clean is not None
    recipe = fine_tuning(40, 60, 0.003, "none", "constant", 0.0)
    poison = triggered(models.data.clean, models.fitted)
    ends = [
        unlearned(models.suspect, samples, recipe, runtime(), enough=enough)[0]
        for samples, enough in ((models.data.clean, 1 / CLASSES), (poison, 0.05))
    ]
    for layer, told in seen().measured["suspect"]["layers"].items():
        start = models.suspect.get_parameter(f"{layer}.weight")
        clean, triggers = ((end.get_parameter(f"{layer}.weight") - start).detach().abs().sum((1, 2, 3)) for end in ends)
        assert (told["pearson"], told["spearman"]) == pytest.approx(correlations(clean, triggers), abs=1e-5)
        assert told["neurons"] == len(start)
    assert seen().measured["suspect"]["epochs"]["poison"] < 40, "and both did end"


def test_the_suspect_has_unlearned_what_it_was_to_unlearn() -> None:
    poison = triggered(material().clean, planted(1).fitted)
    assert not bool((poison.labels != planted(1).target).any())
    assert len(poison) == 7 * 30, "images of the target class do not count"
    answers = logits_of(planted(1).suspect, poison.images, runtime()).argmax(1)
    assert float((answers == poison.labels).float().mean()) > 0.9, "the backdoor is in what is unlearned"


def test_all_that_is_told_is_finite_and_there_for_both_models() -> None:
    found = seen()
    for name in ("suspect", "reference"):
        one = found.measured[name]
        assert set(one["layers"]) == {"body.0", "body.3", "body.6"}
        assert all(-1 <= layer["pearson"] <= 1 and 0 <= layer["gini"] < 1 for layer in one["layers"].values())
        assert [row["share"] for row in one["overlap"]] == [0.1, 0.2]
        assert all(0 <= row[key] <= 1 for row in one["overlap"] for key in ("overlap", "by_layers_alone"))
        assert len(one["gradient_norms"]) == 8
        assert one["gradient_norm"]["low"] < one["gradient_norm"]["value"] < one["gradient_norm"]["high"]
        assert len(found.details[f"{name}_nwc"]["poison"]["body.0"]) == 12
    assert [figure.marks for figure in found.figures] == ["points", "points", "lines", "lines", "lines"]
    assert "in the reference" in found.headline
    assert f"{found.measured['gradient_ratio']['value']:.2f} times" in found.detail


def test_a_tenth_and_the_medians_are_those_of_the_numbers_that_are_kept() -> None:
    found = seen().measured["suspect"]
    layers = [sorted(layer["spearman"] for layer in found["layers"].values()), seen().details["suspect_nwc"]["clean"]]
    assert found["median_layer"]["spearman"] == layers[0][1]
    every = sorted((value for values in layers[1].values() for value in values), reverse=True)
    assert found["top_tenth"] == pytest.approx(sum(every[:6]) / sum(every))


def test_a_model_is_as_active_as_itself_and_an_untrained_one_is_more_so() -> None:
    suspect = planted(1).suspect
    same = QUICK.inspect(suspect, material(attack=None, reference=suspect), runtime()).measured["gradient_ratio"]
    assert same == {"value": 1.0, "low": 1.0, "high": 1.0}
    other = QUICK.inspect(network(1), material(attack=None, reference=suspect), runtime()).measured["gradient_ratio"]
    assert other["value"] > 2
    assert other["low"] < other["value"] < other["high"]


def test_without_attack_and_reference_it_shows_what_the_model_alone_shows() -> None:
    found = QUICK.inspect(planted(1).suspect, material(attack=None, reference=None), runtime())
    assert set(found.measured) == {"suspect", "gradient_ratio"}
    assert found.measured["gradient_ratio"] is None
    assert set(found.measured["suspect"]["epochs"]) == {"clean"}
    assert "overlap" not in found.measured["suspect"]
    assert [figure.marks for figure in found.figures] == ["lines", "lines"]
    assert "A tenth of the neurons" in found.headline


def test_unlearning_that_does_not_end_is_said() -> None:
    short = replace(QUICK, unlearning_epochs=1, unlearning_rate=1e-6)
    notes = short.inspect(planted(1).suspect, material(reference=None), runtime()).notes
    assert [note.split(" unlearning")[0] for note in notes[1:]] == ["suspect: clean", "suspect: poison"]


def test_another_network_as_reference_is_said() -> None:
    body = nn.Sequential(
        nn.Conv2d(3, 24, 3, 4, 1), nn.BatchNorm2d(24), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, CLASSES)
    )
    other = Network(body, network(0).description)
    found = QUICK.inspect(planted(1).suspect, material(attack=None, reference=other), runtime())
    assert any("another network" in note for note in found.notes)


def test_models_and_samples_stay_as_they_were() -> None:
    models, given = planted(1), material()
    before = state_of(models.suspect), state_of(models.twin), given.clean.digest()
    # What was seen before is kept, and would look at nothing.
    seen.__wrapped__()
    after = state_of(models.suspect), state_of(models.twin), given.clean.digest()
    assert same_state(before[0], after[0])
    assert same_state(before[1], after[1])
    assert before[2] == after[2]


@pytest.mark.parametrize("stop", [3, 45, 90])
def test_an_interrupted_inspection_goes_on_to_the_same(tmp_path: Path, stop: int) -> None:
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=Stops(stop))
    with pytest.raises(KeyboardInterrupt):
        QUICK.inspect(planted(1).suspect, material(), stopping, tmp_path / "resume.pt")
    again = QUICK.inspect(planted(1).suspect, material(), runtime(), tmp_path / "resume.pt")
    assert again.measured == seen().measured
    assert len(list(tmp_path.iterdir())) == 6, "a state for each stage of each model"


def test_an_attack_that_is_none_here_is_refused() -> None:
    suspect, clean = planted(1).suspect, pictures(64, 3)
    idle = Stamp(mask=torch.zeros(1, 12, 12), pattern=torch.zeros(3, 12, 12))
    with pytest.raises(InputError, match="changes no pixel"):
        QUICK.inspect(suspect, material(attack=Known(idle, AllToOne(target=0))), runtime())
    alone = clean.subset((clean.labels == 2).nonzero().squeeze(1))
    with pytest.raises(InputError, match="no trigger can be seen at work"):
        triggered(alone, Known(planted(1).fitted.trigger, AllToOne(target=2)))


@pytest.mark.parametrize(
    "options", [{"unlearning_epochs": 0}, {"epochs": 0}, {"shares": ()}, {"shares": (0.0,)}, {"shares": (1.5,)}]
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^Weights: .* found "):
        Weights(**options)


def test_nothing_that_was_measured_is_nan() -> None:
    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [number for one in value.values() for number in numbers(one)]
        if isinstance(value, list | tuple):
            return [number for one in value for number in numbers(one)]
        return [value] if isinstance(value, float) else []

    assert len(numbers(dict(seen().measured))) > 50
    assert all(math.isfinite(number) for number in numbers(dict(seen().measured)))


def test_an_option_of_fine_tuning_is_refused_before_unlearning(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learning rate"):
        replace(QUICK, learning_rate=-1.0).inspect(planted(1).suspect, material(), runtime(), tmp_path / "resume.pt")
    assert not list(tmp_path.iterdir())
