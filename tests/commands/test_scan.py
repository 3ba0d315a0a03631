"""`unbackdoor scan`, end to end: verdict, p-value, what each scanner said, what to do next, and the exit code."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands.networks import TINY
from tests.commands.test_cli import refuse, run
from tests.scan.tables import TABLE, written
from unbackdoor.bench.zoo import Entry
from unbackdoor.bench.zoo_scans import scan_zoo
from unbackdoor.commands import zoo
from unbackdoor.data import read_images
from unbackdoor.errors import CheckpointError
from unbackdoor.scan import NeuralCleanse, TSBDSignals, UniversalPerturbations, WeightStatistics
from unbackdoor.scan.calibration import Table
from unbackdoor.scan.calibration_file import read_tables
from unbackdoor.training import Runtime, UserNetwork

QUICK = (
    WeightStatistics(),
    UniversalPerturbations(steps=4, batch_size=4),
    TSBDSignals(epochs=1),
    NeuralCleanse(rounds=4, steps=2, batch_size=4, patience=2, most_classes=4),
)
DIGITS = replace(
    TABLE,
    name="digits, made up",
    data="digits",
    class_names=tuple("0123456789"),
    image_shape=(1, 32, 32),
    architecture="PreActResNet18",
    arguments={"width": 8},
    clean_size=50,
    precision="bf16",
    detectors=QUICK,
)
THREADS = ["--threads", "1"]


ALIKE, APART = 1e-3, 1e6
"""How far clean models lie apart: any model is more unusual than the first, and none more than the second."""


def table(path: Path, spread: float, **more: object) -> Path:
    """Write a table with clean models that far apart."""
    made: Table = replace(DIGITS, **more)  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(0)
    clean = {type(one).__name__: spread * torch.randn(39, 1, 10, generator=draws) for one in made.detectors}
    return written(path, replace(made, clean=clean))


def scan(model: Path, clean: str, tables: Path, out: Path, *more: str) -> list[str]:
    words = ["scan", "--scanner", "Verdict", "--scanner.table", str(tables), "--model", str(model), "--clean", clean]
    return [*words, "--clean-size", "50", "--out", str(out), *THREADS, *more]


@pytest.mark.parametrize(("spread", "code", "word"), [(ALIKE, 1, "backdoored"), (APART, 0, "no evidence found")])
def test_the_verdict_its_rate_its_p_value_and_what_each_scanner_said_are_shown(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spread: float, code: int, word: str
) -> None:
    words = scan(victim / "model.safetensors", "digits", table(tmp_path / "t.json", spread), tmp_path / "out")
    found, out, err = run(capsys, *words)
    assert found == code, err
    text = " ".join(out.replace("│", " ").split())
    assert word in text
    p_value = "0.025" if code else "1"
    assert f"{p_value}, from 39 clean models" in text
    assert "at most 5 % of clean models like those of the zoo on digits; of models held out, 2 of 60 clean" in text
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
    tables = table(tmp_path / "t.json", APART, arguments={"width": 64})
    words = scan(victim / "model.safetensors", "digits", tables, tmp_path / "out", "--json")
    code, out, _ = run(capsys, *words)
    found = json.loads(out)
    assert code == found["exit_code"] == 3
    assert found["backdoored"] is None
    assert found["calibrated"] is False
    assert found["calibration"]["misfits"] == ["the network PreActResNet18 width=8"]
    assert found["p_value"] == 1.0
    assert set(found["seconds"]) == {"all", *(type(one).__name__ for one in QUICK)}


def test_a_budget_ends_the_scan_in_time_and_ends_its_calibration(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = (WeightStatistics(), NeuralCleanse(rounds=10_000, steps=4, batch_size=4))
    tables = table(tmp_path / "t.json", APART, detectors=long)
    words = scan(victim / "model.safetensors", "digits", tables, tmp_path / "out", "--budget", "0.02", "--json")
    code, out, _ = run(capsys, *words)
    found = json.loads(out)
    assert code == 3
    assert found["shortened"] is True
    assert "searches that the budget cut short" in found["calibration"]["misfits"]
    assert found["seconds"]["all"] < 30


def test_a_scanner_that_looks_at_weights_alone_needs_no_images(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scan", "--model", str(victim / "model.safetensors"), "--out", str(tmp_path / "out")]
    code, out, _ = run(capsys, *words, "--scanner", "WeightStatistics", "--json")
    assert code in (0, 1)
    assert json.loads(out)["exit_code"] == code
    assert "clean" in refuse(capsys, *words, "--scanner", "NeuralCleanse")


def test_without_a_name_the_answer_says_whose_it_is(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.commands.scan.default_scanner", lambda *given: WeightStatistics())
    words = ["scan", "--model", str(victim / "model.safetensors"), "--out", str(tmp_path / "out")]
    code, out, _ = run(capsys, *words)
    assert code in (0, 1)
    assert "by WeightStatistics" in " ".join(out.split())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["options"]["scanner"]["name"] == "WeightStatistics"
    # Options are those of a scanner that is named.
    assert "--scanner.threshold is an option of a method, and none is named; name it with --scanner" in refuse(
        capsys, *words, "--scanner.threshold", "3"
    )


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
    tables = table(tmp_path / "t.json", APART)
    code, out, err = run(
        capsys, *scan(tmp_path / "vit", str(tmp_path / "images.npz"), tables, tmp_path / "out", "--json")
    )
    assert code == 3, err
    found = json.loads(out)
    assert len(found["anomaly"]) == 43
    assert [one["anomaly"] is not None for one in found["detectors"]] == [True] * 4
    assert "43 classes instead of 10" in found["calibration"]["misfits"]


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
    tables = table(tmp_path / "t.json", APART)
    assert run(capsys, *scan(model, "digits", tables, tmp_path / "out"))[0] == 0
    again = json.loads(run(capsys, *words, *short, *THREADS, "--json")[1])
    assert again == found
    assert "another recipe" in refuse(capsys, *words, *short, "--size", "90", *THREADS)
    assert "did you mean BadNets" in refuse(capsys, *words[:-1], "[BadNet]", *THREADS)


def test_a_zoo_of_a_network_of_the_users_own_is_made_and_scanned_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["zoo", "--data", "digits", "--out", str(tmp_path), "--rounds", "1", "--attacks", "[BadNets]"]
    short = ["--size", "100", "--recipe.epochs", "1", "--recipe.batch_size", "50", "--recipe.low_resolution", "0"]
    code, out, err = run(capsys, *words, *short, *THREADS, "--model", TINY, "--json")
    assert code == 0, err
    rows = [json.loads(line) for line in Path(json.loads(out)["index"]).read_text().splitlines()]
    assert {row["network"] for row in rows} == {TINY}
    clean = [row for row in rows if row["attack"] is None]
    images, given = read_images("digits", "train"), ([WeightStatistics()], 50, Runtime(device="cpu", threads=1))
    looked = scan_zoo(tmp_path, clean, [UserNetwork.named(TINY)], images, *given)
    assert len(looked[0][1][0]["anomaly"]) == 10
    (tmp_path / "scans.jsonl").unlink()
    with pytest.raises(CheckpointError, match="arch"):
        scan_zoo(tmp_path, clean, zoo.NETWORKS, images, *given)


def made_up(entries: list[Entry]) -> list[dict[str, object]]:
    """Return the rows of an index, as if each attack had worked."""
    made = {"size": 100, "recipe": {"epochs": 3}, "kept": 250}
    return [
        {"key": e.key, **vars(e), "backdoored": e.attack is not None, "target": e.attack and 3, "acc": 1.0, "asr": 1.0}
        | {"made": made}
        for e in entries
    ]


def said_of(row: dict[str, object], size: int) -> list[dict[str, object]]:
    """Return scans by which the target of a backdoored model stands out."""
    draws = torch.Generator().manual_seed(zlib.crc32(f"{row['key']} {size}".encode()))
    anomaly = torch.randn(10, generator=draws)
    if row["backdoored"]:
        anomaly[3] += 8
    plain = {
        "anomaly": anomaly.tolist(),
        "numbers": [anomaly.tolist()],
        "threshold": 3.5,
        "flagged": False,
        "suspected": [],
    }
    return [{**plain, "detector": type(one).__name__} for one in zoo.DETECTORS]


def test_zoo_writes_tables_for_the_network_that_was_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "fill", lambda out, entries, *_: made_up(entries))
    monkeypatch.setattr(zoo, "scan_zoo", lambda out, rows, *more: [(row, said_of(row, more[3])) for row in rows])
    words = ["zoo", "--data", "digits", "--out", str(tmp_path / "zoo"), "--attacks", "[BadNets, SIG]", *THREADS]
    words += ["--model", "PreActResNet18", "--model.width", "8", "--table", str(tmp_path / "t.json")]
    code, out, err = run(capsys, *words, "--rounds", "36")
    assert code == 0, err
    assert "18 of 18 backdoored" in " ".join(out.replace("│", " ").split())
    few, many = read_tables(tmp_path / "t.json")
    assert (few.clean_size, many.clean_size) == (50, 250)
    for table in (few, many):
        assert (table.architecture, table.arguments, table.data) == ("PreActResNet18", {"width": 8}, "digits")
        assert table.clean_models == 18
        assert table.rate == pytest.approx(1 / 19)
        assert table.held_out.found == table.held_out.right_target == 18
        assert "new to the model" in table.name
    # What others are at is waited for by nobody, and no table is made of the rest.
    monkeypatch.setattr(zoo, "scan_zoo", lambda out, rows, *more: [(row, said_of(row, more[3])) for row in rows[1:]])
    (tmp_path / "t.json").unlink()
    code, out, err = run(capsys, *words, "--rounds", "36")
    assert code == 0, err
    assert "no table was written" in " ".join(out.split())
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("rounds", "content", "words"),
    [("2", None, "make a larger zoo"), ("36", "{}", "holds no calibration tables")],
    ids=["small", "another file"],
)
def test_tables_that_cannot_be_made_are_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rounds: str, content: str | None, words: str
) -> None:
    table = tmp_path / "t.json"
    if content is not None:
        table.write_text(content)
    asked = ["zoo", "--data", "digits", "--out", str(tmp_path / "zoo"), "--attacks", "[BadNets, SIG]", *THREADS]
    found = refuse(capsys, *asked, "--model", "WRN16x1", "--rounds", rounds, "--table", str(table))
    assert words in found
    assert not (tmp_path / "zoo").exists()
    for option in ("--seed", "--budget"):
        assert option in refuse(capsys, *asked, option, "1")
