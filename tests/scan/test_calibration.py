"""P-values are uniform for clean models, scores are those of the formula, and files are read or refused."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.planted import NAMES, network
from tests.scan.tables import TABLE, clean_numbers, finding, findings, written
from unbackdoor.conformal import allowed_above
from unbackdoor.errors import InputError
from unbackdoor.models.edits import Edit
from unbackdoor.scan import NeuralCleanse, TSBDSignals
from unbackdoor.scan.calibration import Comparison, compared, nearest
from unbackdoor.scan.calibration_file import FORMAT, read_tables

NUMBERS = st.floats(-50, 50)
EIGHT = st.lists(NUMBERS, min_size=8, max_size=8)
CLEAN = TABLE.clean


def plainly(
    clean: dict[str, NDArray[np.float64]], numbers: dict[str, NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """Return the scores of the classes of all models, the one looked at last, as the module's text says them."""
    models = len(next(iter(clean.values()))) + 1
    total = [np.zeros(8) for _ in range(models)]
    for name, known in clean.items():
        everyone = [*known, numbers[name]]
        leads = [[row - np.median(row) for row in one] for one in everyone]
        usual = [[np.median([leads[i][j][c] for i in range(models)]) for c in range(8)] for j in range(len(leads[0]))]
        far = [[[leads[i][j][c] - usual[j][c] for c in range(8)] for j in range(len(usual))] for i in range(models)]
        pooled = np.median(np.abs(far)[np.abs(far) > 0])
        for i in range(models):
            for c in range(8):
                unusual = [
                    math.asinh(
                        far[i][j][c] / (1.4826 * max(pooled, np.median([abs(far[k][j][c]) for k in range(models)])))
                    )
                    for j in range(len(usual))
                ]
                total[i][c] += max(0.0, *unusual) ** 2
    return total


def test_scores_are_those_of_the_formula() -> None:
    draws = np.random.default_rng(0)
    clean = {"One": draws.normal(size=(12, 1, 8)), "Two": draws.normal(size=(12, 3, 8))}
    numbers = {"One": draws.normal(size=(1, 8)), "Two": 3 * draws.normal(size=(3, 8))}
    found = compared(
        {name: torch.tensor(value) for name, value in clean.items()},
        {name: finding([0.0] * 8, numbers=torch.tensor(value)) for name, value in numbers.items()},
    )
    *others, own = plainly(clean, numbers)
    assert found.scores.tolist() == pytest.approx(own.tolist(), rel=1e-5)
    assert found.clean_scores == pytest.approx(sorted(float(one.max()) for one in others), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 25))
def test_each_of_exchangeable_models_against_the_others_has_another_p_value(seed: int, models: int) -> None:
    """The rank of one among all is uniform, so of n models the p-values are 1/n, 2/n, ..., 1, each once."""
    numbers = {name: clean_numbers(models, seed + place) for place, name in enumerate(("One", "Two"))}
    found = []
    for out in range(models):
        others = {name: torch.cat([of[:out], of[out + 1 :]]) for name, of in numbers.items()}
        found.append(compared(others, {name: finding([0.0] * 8, numbers=of[out]) for name, of in numbers.items()}))
    assert sorted(one.p_value for one in found) == pytest.approx([(rank + 1) / models for rank in range(models)])


@settings(max_examples=100)
@given(
    st.lists(st.integers(0, 5).map(float), min_size=1, max_size=60),
    st.integers(0, 6).map(float),
    st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.9]),
)
def test_the_threshold_says_the_same_as_the_p_value_ties_included(
    scores: list[float], score: float, rate: float
) -> None:
    found = Comparison(scores=torch.tensor([score, 0.0]), clean_scores=tuple(sorted(scores)))
    assert bool(found.suspected(rate)) == (score > found.threshold(rate)) == (found.p_value <= rate + 1e-9)


def test_too_few_clean_models_allow_no_alarm() -> None:
    few, enough = (Comparison(scores=torch.tensor([9.0]), clean_scores=(0.0,) * count) for count in (18, 19))
    assert (few.threshold(0.05), few.suspected(0.05)) == (math.inf, ())
    assert (enough.threshold(0.05), enough.suspected(0.05)) == (0.0, (0,))


@pytest.mark.parametrize("rate", [0.99, 1 - 1e-11, 1.0])
def test_whoever_accuses_nearly_all_has_a_threshold_too(rate: float) -> None:
    assert Comparison(scores=torch.zeros(2), clean_scores=(1.0, 2.0, 3.0)).threshold(rate) == 1.0


def test_all_classes_above_the_threshold_are_suspected_the_highest_first() -> None:
    found = Comparison(scores=torch.tensor([0.0, 7.0, 9.0, 5.0]), clean_scores=(6.0,) * 19)
    assert found.suspected(0.05) == (2, 1)


def test_a_table_of_before_a_detector_changed_fits_no_model(tmp_path: Path) -> None:
    told = TSBDSignals(epochs=2)
    more = {**TABLE.clean, "TSBDSignals": clean_numbers(39)}
    table = replace(TABLE, detectors=(*TABLE.detectors, told), clean=more)
    assert told.revision > 0
    description = network(0).description
    (same,) = read_tables(written(tmp_path / "now.json", table))
    assert same.misfits(description, 60, "fp32") == []
    content = json.loads((tmp_path / "now.json").read_text())
    content["tables"][0]["detectors"][-1]["revision"] -= 1
    (tmp_path / "before.json").write_text(json.dumps(content))
    (old,) = read_tables(tmp_path / "before.json")
    assert old.misfits(description, 60, "fp32") == ["numbers of TSBDSignals that are others since the table was made"]


def test_tables_that_could_not_be_read_back_are_not_written(tmp_path: Path) -> None:
    """Of numbers whose detector is not in the table."""
    (tmp_path / "tables.json").write_text("before")
    with pytest.raises(InputError, match="could not be read: clean must have the numbers of each detector"):
        written(tmp_path / "tables.json", replace(TABLE, detectors=TABLE.detectors[:1]))
    assert (tmp_path / "tables.json").read_text() == "before"


@settings(max_examples=60, deadline=None)
@given(EIGHT, EIGHT, st.integers(0, 7), st.floats(0, 20))
def test_a_class_of_which_all_numbers_grow_is_no_less_unusual(
    universal: list[float], weights: list[float], which: int, more: float
) -> None:
    """Among the classes of its model: what is usual of a class may move a little, for the clean models as well."""
    before = compared(CLEAN, findings(universal, weights)).scores
    raised = [[value + more * (c == which) for c, value in enumerate(of)] for of in (universal, weights)]
    after = compared(CLEAN, findings(*raised)).scores
    assert int((after > after[which]).sum()) <= int((before > before[which]).sum())


def test_detectors_that_point_at_one_class_count_more_than_those_that_contradict_each_other() -> None:
    one, other = [9.0] + [0.0] * 7, [0.0] * 7 + [9.0]
    agreed, apart = (compared(CLEAN, findings(one, at)).score for at in (one, other))
    assert agreed > apart


def test_a_detector_that_is_sure_is_not_drowned_by_many_that_see_nothing() -> None:
    names = [f"Blind{number}" for number in range(9)]
    clean = {name: clean_numbers(39, number) for number, name in enumerate(("Sees", *names))}
    said = {name: finding([0.0] * 8, numbers=clean_numbers(1, 90 + number)[0]) for number, name in enumerate(names)}
    found = compared(clean, {**said, "Sees": finding([30.0] + [0.0] * 7)})
    assert (found.p_value, found.suspected(0.05)[:1]) == (1 / 40, (0,))


@pytest.mark.parametrize("classes", [20, 43, 100])
def test_among_many_classes_of_which_few_are_searched_a_target_is_found(classes: int) -> None:
    """What was not searched has the least number of those that were, as `for_all` gives it."""
    draws = torch.Generator().manual_seed(0)

    def searched(target: int | None) -> torch.Tensor:
        easy = torch.linspace(0, 3, classes)
        numbers = easy + torch.randn(classes, generator=draws)
        if target is not None:
            numbers[target] += 12
        chosen = (easy + torch.randn(classes, generator=draws)).topk(15).indices
        chosen = torch.cat([chosen, torch.tensor([target])]) if target is not None else chosen
        kept = torch.full((classes,), float(numbers[chosen].min()))
        kept[chosen] = numbers[chosen]
        return kept[None]

    clean = {"Sees": torch.stack([searched(None) for _ in range(26)])}
    target = classes - 2
    found = [compared(clean, {"Sees": finding([0.0] * classes, numbers=searched(target))}) for _ in range(10)]
    assert sum(one.suspected(0.05)[:1] == (target,) for one in found) >= 9


def test_what_clean_models_do_too_is_usual() -> None:
    """A class that stands out in every clean model is no news, and the same number of another class is."""
    clean = {"Sees": clean_numbers(39) + 20 * torch.eye(8)[3]}
    usual, news = (compared(clean, {"Sees": finding((20 * torch.eye(8)[c]).tolist())}) for c in (3, 4))
    assert usual.p_value > 0.5
    assert (news.p_value, news.suspected(0.05)) == (1 / 40, (4,))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_counts_as_the_class_in_the_middle(value: float) -> None:
    middle = [0.0] * 8
    plain, odd = (compared(CLEAN, findings([one, *middle[1:]], middle)).scores for one in (0.0, value))
    assert torch.equal(plain, odd)
    nothing = compared(CLEAN, findings([value] * 8, middle))
    assert bool(nothing.scores.isfinite().all())


def test_detectors_without_a_word_are_left_out_of_both_sides() -> None:
    found = compared(CLEAN, {"UniversalPerturbations": finding([9.0] + [0.0] * 7)})
    alone = compared(
        {"UniversalPerturbations": CLEAN["UniversalPerturbations"]},
        {"UniversalPerturbations": finding([9.0] + [0.0] * 7)},
    )
    assert torch.equal(found.scores, alone.scores)
    assert found.clean_scores == alone.clean_scores


def test_tables_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    more = {**CLEAN, "NeuralCleanse": clean_numbers(39, 5)}
    other = replace(TABLE, detectors=(*TABLE.detectors, NeuralCleanse(rounds=3, most_classes=5)), clean=more)
    found = read_tables(written(tmp_path / "t.json", TABLE, other))
    assert [one.to_json() for one in found] == [TABLE.to_json(), other.to_json()]
    for one, table in zip(found, (TABLE, other)):
        assert (one.class_names, one.image_shape, one.detectors) == (table.class_names, (3, 12, 12), table.detectors)
        for name, numbers in table.clean.items():
            torch.testing.assert_close(one.clean[name], numbers, rtol=1e-3, atol=1e-6)


def test_names_of_classes_come_back_as_they_were(tmp_path: Path) -> None:
    table = replace(TABLE, class_names=("a  b", "", " c", "d" * 600, "e\n", "f", "g", "h"))
    (found,) = read_tables(written(tmp_path / "t.json", table))
    assert found.class_names == table.class_names


def test_a_file_that_would_be_too_large_to_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.scan.calibration_file.MOST_BYTES", 1000)
    with pytest.raises(InputError, match="make a zoo of fewer rounds"):
        written(tmp_path / "t.json", TABLE)
    assert not (tmp_path / "t.json").exists()


def test_the_tables_that_are_shipped_can_be_read() -> None:
    for table in read_tables():
        assert allowed_above(table.rate, table.clean_models) >= 1
        assert table.held_out.found > 0
        assert table.changed == (), "the detectors give other numbers since: make the tables anew"


def test_a_table_fits_models_of_its_own_kind_only() -> None:
    description = network(0).description
    assert TABLE.misfits(description, 60, "fp32") == []
    assert TABLE.misfits(replace(description, class_names=("a", "b", "c")), 60, "fp32") == ["3 classes instead of 8"]
    assert TABLE.misfits(replace(description, class_names=NAMES[::-1]), 60, "fp32") == [
        "classes of other names, or in another order"
    ]
    assert TABLE.misfits(replace(description, image_shape=(1, 12, 12)), 60, "fp32") == [
        "images of 1 x 12 x 12 instead of 3 x 12 x 12"
    ]
    assert TABLE.misfits(replace(description, architecture="other"), 60, "fp32") == ["the network other"]
    assert TABLE.misfits(replace(description, arguments={"width": 64}), 60, "fp32") == ["the network planted width=64"]
    assert TABLE.misfits(description, 59, "fp32") == ["59 clean images instead of 60"]
    assert TABLE.misfits(description, 60, "bf16") == ["a precision of bf16 instead of fp32"]


def test_a_width_that_is_not_told_is_the_networks_own() -> None:
    description = replace(network(0).description, architecture="PreActResNet18", arguments={})
    wide, narrow = (replace(TABLE, architecture="PreActResNet18", arguments={"width": width}) for width in (64, 8))
    assert wide.misfits(description, 60, "fp32") == []
    assert narrow.misfits(description, 60, "fp32") == ["the network PreActResNet18"]
    assert narrow.misfits(replace(description, arguments={"width": 8}), 60, "fp32") == []


def test_a_hugging_face_network_of_another_configuration_is_another_network() -> None:
    description = replace(network(0).description, architecture="HuggingFace", arguments={"config": {"depth": 2}})
    table = replace(TABLE, architecture="HuggingFace", arguments={"config": {"depth": 2}})
    assert table.misfits(description, 60, "fp32") == []
    assert len(table.misfits(replace(description, arguments={"config": {"depth": 3}}), 60, "fp32")) == 1


def test_a_network_into_which_a_repair_put_layers_is_another_network() -> None:
    edited = replace(network(0).description, edits=(Edit(kind="convbn", before="0"),))
    assert TABLE.misfits(edited, 60, "fp32") == ["layers that were put in after training"]


def test_of_several_tables_the_one_that_fits_is_taken_and_else_the_least_unlike() -> None:
    description = network(0).description
    few, many = replace(TABLE, name="few"), replace(TABLE, name="many", clean_size=200)
    far = replace(TABLE, name="far", class_names=tuple(map(str, range(43))), image_shape=(3, 32, 32))
    other = replace(TABLE, name="other", architecture="other", clean_size=200)
    wide = replace(TABLE, name="wide", arguments={"width": 64}, clean_size=200)
    tables = (far, few, other, wide, many)
    assert nearest(tables, description, 500, "fp32").name == "many"
    assert nearest(tables, description, 100, "fp32").name == "few"
    unknown = replace(description, class_names=tuple(map(str, range(40))), image_shape=(3, 32, 32))
    assert nearest(tables, unknown, 500, "fp32").name == "far"
    assert nearest((far, other, wide), description, 500, "fp32").name == "wide", "the same architecture is less unlike"


Change = Callable[[dict[str, Any]], object]
REFUSED: list[tuple[Change, str]] = [
    (lambda content: content.update(format=1), "format is 1"),
    (lambda content: content.update(tables=[]), "tables must be a list"),
    (lambda content: content["tables"].append(3), "a table must be an object"),
    (lambda content: content["tables"][0].pop("name"), "name must be a text"),
    (lambda content: content["tables"][0].update(class_names=8), "class_names must be a list"),
    (lambda content: content["tables"][0].update(class_names=[1] * 8), "name of a class must be a text"),
    (lambda content: content["tables"][0]["class_names"].pop(), "a number for each class"),
    (lambda content: content["tables"][0].update(image_shape=[3, 12]), "channels, height and width"),
    (lambda content: content["tables"][0].update(clean=[]), "clean must be an object"),
    (lambda content: content["tables"][0]["clean"].update(WeightStatistics=[]), "WeightStatistics must be a list"),
    (lambda content: content["tables"][0]["clean"]["WeightStatistics"][3].pop(), "WeightStatistics must be a list"),
    (lambda content: content["tables"][0]["clean"]["WeightStatistics"][3][0].pop(), "a number for each class"),
    (lambda content: content["tables"][0]["clean"]["WeightStatistics"][3].append([0] * 8), "as many rows for each"),
    (lambda content: content["tables"][0]["clean"]["WeightStatistics"].pop(), "equally many clean models"),
    (lambda content: content["tables"][0]["clean"]["WeightStatistics"][0][0].__setitem__(0, "1"), "must be a number"),
    (lambda content: content["tables"][0].update(arguments=[]), "arguments must be an object"),
    (lambda content: content["tables"][0].pop("architecture"), "architecture must be a text"),
    (lambda content: content["tables"][0].update(data=3), "data must be a text"),
    (lambda content: content["tables"][0].update(rate=1.5), "rate must be a number from 0 to 1"),
    (lambda content: content["tables"][0].update(detectors=[{"name": "Nothing"}]), "unknown scanner"),
    (lambda content: content["tables"][0].update(detectors=[{"name": "Verdict"}]), "one of its own detectors"),
    (lambda content: content["tables"][0]["detectors"][1].update(steps="many"), "option steps"),
    (lambda content: content["tables"][0]["detectors"][1].update(step=1), "no option 'step'"),
    (lambda content: content["tables"][0].update(detectors=[{"name": "WeightStatistics"}] * 2), "stands twice"),
    (lambda content: content["tables"][0].update(detectors=[{"name": "WeightStatistics"}]), "of each detector"),
    (
        lambda content: content["tables"][0]["clean"]["WeightStatistics"][0][0].__setitem__(0, 10**400),
        "must be a number",
    ),
    (lambda content: content["tables"][0]["held_out"].update(alarms=61), "counts more than there are"),
    (lambda content: content["tables"][0]["held_out"].update(right_target=51), "counts more than there are"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_a_file_that_is_wrong_somewhere_is_refused_with_the_reason(tmp_path: Path, change: Change, words: str) -> None:
    content = {"format": FORMAT, "tables": [copy.deepcopy(TABLE.to_json())]}
    change(content)
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"t\.json holds no calibration tables: .*" + words):
        read_tables(tmp_path / "t.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "NaN", '{"a": 1, "a": 2}', "[" * 100_000, "\udcff"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="name a file of calibration tables"):
        read_tables(tmp_path / "t.json")


def test_a_file_that_is_not_there_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: cannot be read .* name a file of calibration tables"):
        read_tables(tmp_path / "nothing.json")
    with pytest.raises(InputError, match=r"cannot be read|no regular file"):
        read_tables(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_stands_in_the_place_of_a_value_the_file_is_read_or_refused(data: st.DataObject) -> None:
    content: Any = {"format": FORMAT, "tables": [TABLE.to_json()]}
    content = json.loads(json.dumps(content))
    at, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(at[key], (dict, list)) and at[key] and data.draw(st.booleans()):
        at = at[key]
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
    at[key] = data.draw(JSON)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.json"
        path.write_text(json.dumps(content))
        # Whatever else is raised fails the test.
        with contextlib.suppress(InputError):
            assert read_tables(path)
