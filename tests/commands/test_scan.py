"""`unbackdoor scan`, end to end: verdict, p-value, what each scanner said, what to do next, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands.test_cli import refuse, run
from tests.scan.tables import TABLE, write_tables
from unbackdoor.scan import NeuralCleanse, TSBDSignals, UniversalPerturbations, WeightStatistics
from unbackdoor.scan.calibration import Measure, Table

QUICK = (
    WeightStatistics(),
    UniversalPerturbations(steps=4, batch_size=4),
    TSBDSignals(epochs=1),
    NeuralCleanse(rounds=4, steps=2, batch_size=4, patience=2, most_classes=4),
)
MEASURES = tuple(
    Measure(detector=type(one).__name__, number="anomaly", center=0.0, scale=1.0, weight=1.0) for one in QUICK
)
DIGITS = replace(
    TABLE,
    name="digits, made up",
    classes=10,
    image_shape=(1, 32, 32),
    networks=("PreActResNet18",),
    clean_size=50,
    detectors=QUICK,
    measures=MEASURES,
)
THREADS = ["--threads", "1"]


def table(path: Path, clean: float, **more: object) -> Path:
    """Write a table by which every clean model has this score."""
    made: Table = replace(DIGITS, clean_scores=(clean,) * 39, **more)  # type: ignore[arg-type]
    return write_tables(path, made)


def scan(model: Path, clean: str, tables: Path, out: Path, *more: str) -> list[str]:
    words = ["scan", "--scanner", "Verdict", "--scanner.table", str(tables), "--model", str(model), "--clean", clean]
    return [*words, "--clean-size", "50", "--out", str(out), *THREADS, *more]


@pytest.mark.parametrize(("clean", "code", "word"), [(-99.0, 1, "backdoored"), (99.0, 0, "no evidence found")])
def test_the_verdict_its_rate_its_p_value_and_what_each_scanner_said_are_shown(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], clean: float, code: int, word: str
) -> None:
    words = scan(victim / "model.safetensors", "digits", table(tmp_path / "t.json", clean), tmp_path / "out")
    found, out, err = run(capsys, *words)
    assert found == code, err
    text = " ".join(out.replace("│", " ").split())
    assert word in text
    p_value = "0.025" if code else "1"
    assert f"{p_value}, from 39 clean models" in text
    assert "at most 5 % of clean models; of models held out, 2 of 60 clean and 58 of 62 backdoored ones" in text
    assert "yes, on digits, made up" in text
    for one in QUICK:
        assert type(one).__name__ in text
    assert ("repair it" in text) == (code == 1)
    assert ("pixels, leads" in text) == (code == 1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What each scanner said" in page
    assert "How sure" in page
    assert "The trigger as found" in page
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [one["name"] for one in record["finding"]["detectors"]] == [type(one).__name__ for one in QUICK]


def test_outside_of_the_calibration_it_says_so_and_programs_see_it(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = table(tmp_path / "t.json", 99.0, networks=("WRN16x1",))
    words = scan(victim / "model.safetensors", "digits", tables, tmp_path / "out", "--json")
    code, out, _ = run(capsys, *words)
    found = json.loads(out)
    assert code == found["exit_code"] == 3
    assert found["backdoored"] is None
    assert found["calibrated"] is False
    assert found["calibration"]["misfits"] == ["the network PreActResNet18"]
    assert found["p_value"] == 1.0
    assert set(found["seconds"]) == {"all", *(type(one).__name__ for one in QUICK)}


def test_a_budget_ends_the_scan_in_time_and_ends_its_calibration(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = (WeightStatistics(), NeuralCleanse(rounds=10_000, steps=4, batch_size=4))
    tables = table(tmp_path / "t.json", 99.0, detectors=long, measures=(MEASURES[0], MEASURES[3]))
    words = scan(victim / "model.safetensors", "digits", tables, tmp_path / "out", "--budget", "0.02", "--json")
    code, out, _ = run(capsys, *words)
    found = json.loads(out)
    assert code == 3
    assert found["shortened"] is True
    assert "searches that the budget cut short" in found["calibration"]["misfits"]
    assert found["seconds"]["all"] < 30


def test_a_damaged_table_is_one_sentence(victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.json").write_text("{")
    words = scan(victim / "model.safetensors", "digits", tmp_path / "t.json", tmp_path / "out")
    assert "name a file of calibration tables" in refuse(capsys, *words)


def test_a_hugging_face_classifier_of_43_classes_is_scanned_with_50_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_channels=3,
        id2label={number: f"class {number}" for number in range(43)},
    )
    torch.manual_seed(0)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "vit")
    draws = np.random.default_rng(0)
    labels = np.arange(86) % 43
    np.savez(tmp_path / "images.npz", images=draws.integers(0, 256, (86, 16, 16, 3), np.uint8), labels=labels)
    tables = table(tmp_path / "t.json", 99.0)
    code, out, err = run(
        capsys, *scan(tmp_path / "vit", str(tmp_path / "images.npz"), tables, tmp_path / "out", "--json")
    )
    assert code == 3, err
    found = json.loads(out)
    assert len(found["anomaly"]) == 43
    assert [one["anomaly"] is not None for one in found["detectors"]] == [True] * 4
    assert "43 classes instead of 10" in found["calibration"]["misfits"]
    # Four classes were searched, and no other can be the most unusual.
    cleanse = found["detectors"][3]
    assert cleanse["class"] in {one["target"] for one in found["triggers"] if one["success"] > 0} | {cleanse["class"]}


def test_zoo_makes_models_that_scan_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["zoo", "--data", "digits", "--out", str(tmp_path / "zoo"), "--rounds", "1", "--attacks", "[BadNets]"]
    short = ["--size", "100", "--recipe.epochs", "1", "--recipe.batch_size", "50", "--recipe.low_resolution", "0"]
    code, out, err = run(capsys, *words, *short, *THREADS, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["clean"] == 1
    assert found["planned"] == 2
    rows = [json.loads(line) for line in Path(found["index"]).read_text().splitlines()]
    assert {row["attack"] for row in rows} == {None, "BadNets"}
    model = tmp_path / "zoo" / rows[0]["file"]
    tables = table(tmp_path / "t.json", 99.0)
    assert run(capsys, *scan(model, "digits", tables, tmp_path / "out"))[0] == 0
    again = json.loads(run(capsys, *words, *short, *THREADS, "--json")[1])
    assert again == found
    assert "another recipe" in refuse(capsys, *words, *short, "--size", "90", *THREADS)
    assert "did you mean BadNets" in refuse(capsys, *words[:-1], "[BadNet]", *THREADS)
