"""P-values are uniform for clean models, scores never fall when a number grows, and files are read or refused."""

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

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planted import network
from tests.scan.tables import TABLE, finding, findings, written
from unbackdoor.errors import InputError
from unbackdoor.models.edits import Edit
from unbackdoor.scan import NeuralCleanse, TSBDSignals
from unbackdoor.scan.calibration import ANOMALY, class_scores, nearest, threshold_of
from unbackdoor.scan.calibration_file import FORMAT, read_tables

NUMBERS = st.floats(-50, 50)
EIGHT = st.lists(NUMBERS, min_size=8, max_size=8)


@settings(max_examples=50)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30, unique=True))
def test_each_of_exchangeable_models_against_the_others_has_another_p_value(values: list[float]) -> None:
    """The rank of one among all is uniform, so of n values the p-values are 1/n, 2/n, ..., 1, each once."""
    found = []
    for number, value in enumerate(values):
        others = tuple(sorted(values[:number] + values[number + 1 :]))
        found.append(replace(TABLE, clean_scores=others).p_value(value))
    assert sorted(found) == pytest.approx([rank / len(values) for rank in range(1, len(values) + 1)])


@settings(max_examples=100)
@given(
    st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60),
    st.integers(-6, 6).map(float),
    st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.9]),
)
def test_the_threshold_says_the_same_as_the_p_value_ties_included(
    scores: list[float], score: float, rate: float
) -> None:
    table = replace(TABLE, clean_scores=tuple(sorted(scores)))
    assert (score > table.threshold(rate)) == (table.p_value(score) <= rate + 1e-9)


def test_too_few_clean_models_allow_no_alarm() -> None:
    assert threshold_of([0.0] * 18, 0.05) == math.inf
    assert threshold_of([0.0] * 19, 0.05) == 0.0


@pytest.mark.parametrize("rate", [0.99, 1 - 1e-11, 1.0])
def test_whoever_accuses_nearly_all_has_a_threshold_too(rate: float) -> None:
    assert threshold_of([1.0, 2.0, 3.0], rate) == 1.0


def test_a_table_of_before_a_detector_changed_fits_no_model(tmp_path: Path) -> None:
    told = TSBDSignals(epochs=2)
    table = replace(TABLE, detectors=(*TABLE.detectors, told))
    assert told.revision > 0
    description = network(0).description
    (same,) = read_tables(written(tmp_path / "now.json", table))
    assert same == table
    assert same.misfits(description, 60, "fp32") == []
    content = json.loads((tmp_path / "now.json").read_text())
    content["tables"][0]["detectors"][-1]["revision"] -= 1
    (tmp_path / "before.json").write_text(json.dumps(content))
    (old,) = read_tables(tmp_path / "before.json")
    assert old.misfits(description, 60, "fp32") == ["numbers of TSBDSignals that are others since the table was made"]


def test_tables_that_could_not_be_read_back_are_not_written(tmp_path: Path) -> None:
    """Of a measure whose detector is not in the table."""
    (tmp_path / "tables.json").write_text("before")
    with pytest.raises(InputError, match="could not be read: a measure is of a detector that the table does not have"):
        written(tmp_path / "tables.json", replace(TABLE, detectors=TABLE.detectors[:1]))
    assert (tmp_path / "tables.json").read_text() == "before"


def test_scores_are_those_of_the_formula() -> None:
    said = findings([float(c) for c in range(8)], [0.0] * 8, channel=3.0)
    expected = [
        1.0 * math.asinh((c - 2.0) / 0.5) + 0.2 * math.asinh((0.0 - 1.5) / 0.5) + 0.1 * math.asinh((3.0 - 2.0) / 0.5)
        for c in range(8)
    ]
    assert class_scores(TABLE.measures, said).tolist() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(EIGHT, EIGHT, NUMBERS, st.integers(0, 7), st.floats(0, 20))
def test_no_number_that_grows_makes_a_model_less_suspicious(
    universal: list[float], weights: list[float], channel: float, which: int, more: float
) -> None:
    def p_value(one: list[float], other: list[float], third: float) -> float:
        return TABLE.p_value(float(class_scores(TABLE.measures, findings(one, other, third)).max()))

    before = p_value(universal, weights, channel)
    raised = [value + more * (c == which) for c, value in enumerate(universal)]
    assert p_value(raised, weights, channel) <= before
    assert p_value(universal, [v + more * (c == which) for c, v in enumerate(weights)], channel) <= before
    assert p_value(universal, weights, channel + more) <= before


def test_detectors_that_point_at_one_class_count_more_than_those_that_contradict_each_other() -> None:
    one, other = [9.0] + [0.0] * 7, [0.0] * 7 + [9.0]
    agreed, apart = (float(class_scores(TABLE.measures, findings(one, at)).max()) for at in (one, other))
    assert agreed > apart


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_counts_as_usual(value: float) -> None:
    usual = class_scores(TABLE.measures, findings([1.0] * 8, [1.0] * 8, channel=2.0))
    assert torch.equal(class_scores(TABLE.measures, findings([1.0] * 8, [1.0] * 8, channel=value)), usual)
    alone = class_scores(TABLE.measures, {"UniversalPerturbations": finding([2.0] * 8)})
    assert alone.tolist() == [0.0] * 8


def test_tables_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    other = replace(TABLE, classes=10, detectors=(*TABLE.detectors, NeuralCleanse(rounds=3, most_classes=5)))
    assert read_tables(written(tmp_path / "t.json", TABLE, other)) == (TABLE, other)


def test_the_tables_that_are_shipped_can_be_read() -> None:
    for table in read_tables():
        assert {measure.detector for measure in table.measures} <= {type(one).__name__ for one in table.detectors}
        assert any(measure.number == ANOMALY and measure.weight > 0 for measure in table.measures)
        assert math.isfinite(table.threshold(table.rate))
        assert table.changed == (), "the detectors give other numbers since: make the tables anew"


def test_a_table_fits_models_of_its_own_kind_only() -> None:
    description = network(0).description
    assert TABLE.misfits(description, 60, "fp32") == []
    assert TABLE.misfits(replace(description, class_names=("a", "b", "c")), 60, "fp32") == ["3 classes instead of 8"]
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


def test_innocent_classes_are_not_suspected_because_the_whole_model_is_unusual() -> None:
    """The channel lifts all classes above the threshold; one beside the highest has numbers of its own that suffice."""
    rate, universal = 0.05, [9.0, 8.0, *[2.0] * 6]
    assert TABLE.suspected(findings(universal, [1.5] * 8, channel=2.0), rate) == (0, 1)
    measures = (*TABLE.measures[:2], replace(TABLE.measures[2], weight=1.0))
    table = replace(TABLE, measures=measures)
    lifted = findings(universal, [1.5] * 8, channel=60.0)
    assert all(float(score) > table.threshold(rate) for score in class_scores(measures, lifted))
    assert table.suspected(lifted, rate) == (0, 1)
    # The whole model alone: the highest class is named, as something must be, and no other.
    assert table.suspected(findings([2.1, *[2.0] * 7], [1.5] * 8, channel=60.0), rate) == (0,)
    assert table.suspected(findings([2.0] * 8, [1.5] * 8, channel=2.0), rate) == ()


def test_of_several_tables_the_one_that_fits_is_taken_and_else_the_least_unlike() -> None:
    description = network(0).description
    few, many = replace(TABLE, name="few"), replace(TABLE, name="many", clean_size=200)
    far = replace(TABLE, name="far", classes=43, image_shape=(3, 32, 32))
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
    (lambda content: content["tables"][0].update(classes=True), "classes must be a whole number"),
    (lambda content: content["tables"][0].update(image_shape=[3, 12]), "channels, height and width"),
    (lambda content: content["tables"][0].update(clean_scores=[]), "clean_scores must be a list"),
    (lambda content: content["tables"][0].update(clean_scores=["1"]), "clean_scores must be a number"),
    (lambda content: content["tables"][0]["clean_class_scores"].pop(), "as many as clean_scores"),
    (lambda content: content["tables"][0].update(arguments=[]), "arguments must be an object"),
    (lambda content: content["tables"][0].pop("architecture"), "architecture must be a text"),
    (lambda content: content["tables"][0].update(data=3), "data must be a text"),
    (lambda content: content["tables"][0].update(rate=1.5), "rate must be a number from 0 to 1"),
    (lambda content: content["tables"][0].update(detectors=[{"name": "Nothing"}]), "unknown scanner"),
    (lambda content: content["tables"][0].update(detectors=[{"name": "Verdict"}]), "one of its own detectors"),
    (lambda content: content["tables"][0]["detectors"][1].update(steps="many"), "option steps"),
    (lambda content: content["tables"][0]["detectors"][1].update(step=1), "no option 'step'"),
    (lambda content: content["tables"][0].update(detectors=[{"name": "WeightStatistics"}] * 2), "stands twice"),
    (lambda content: content["tables"][0].update(detectors=[{"name": "WeightStatistics"}]), "does not have"),
    (lambda content: content["tables"][0]["measures"][0].update(scale=0), "scale must be above 0"),
    (lambda content: content["tables"][0]["measures"][0].update(weight=-1), "weight must be a number from 0"),
    (lambda content: content["tables"][0]["measures"][0].update(center=10**400), "center must be a number"),
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
