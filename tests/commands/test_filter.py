"""`unbackdoor filter`, from images on disk to a table and a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from PIL import Image
from pyarrow import parquet

from tests.commands.networks import PIXELS
from tests.commands.test_cli import refuse, run
from tests.sift.spread import FEATURES, TARGET, reader, spread
from tests.sift.test_strip import TRIGGER, backdoored
from unbackdoor import commands
from unbackdoor.data import ImageSet
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.models import Network, save_model
from unbackdoor.sift import ScaleUp

QUICK = ["--threads", "1", "--precision", "fp32", "--method", "ScaleUp"]


@pytest.fixture(scope="module")
def plain() -> ImageSet:
    """Clean images but those of the target, which keep their class however bright they are."""
    images = spread(torch.zeros(FEATURES), count=1500).plain
    return images.subset((images.labels != TARGET).nonzero().squeeze(1))


@pytest.fixture
def words(tmp_path: Path, plain: ImageSet) -> list[str]:
    """The words that name a backdoored model and half of the clean images."""
    network = reader(backdoored())
    save_model(tmp_path / "m.safetensors", Network(network.body, network.description), provenance={})
    write_parquet(tmp_path / "clean.parquet", plain.subset(torch.arange(0, len(plain), 2)), {})
    return ["--model", str(tmp_path / "m.safetensors"), "--arch", PIXELS, "--clean", str(tmp_path / "clean.parquet")]


def pictures(folder: Path, images: torch.Tensor, name: str) -> None:
    """Write images as files, without a class."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels.squeeze()).save(folder / f"{name}{number:03d}.png")


def test_triggered_images_among_clean_ones_are_found_and_shown(
    tmp_path: Path, plain: ImageSet, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    others = plain.subset(torch.arange(1, len(plain), 2))
    stamped = others.images[:40].flatten(1).clone()
    stamped[:, TRIGGER] = 255
    pictures(tmp_path / "in", stamped.view_as(others.images[:40]), "lit")
    pictures(tmp_path / "in" / "deeper", others.images[40:80], "plain")
    out = tmp_path / "out"
    code, printed, err = run(
        capsys, "filter", *words, "--inputs", str(tmp_path / "in"), "--out", str(out), "--json", *QUICK
    )
    assert code == 1, err
    result = json.loads(printed)
    table = parquet.read_table(out / "inputs.parquet").to_pylist()
    assert [row["row"] for row in table] == list(range(80))
    lit = [row for row in table if row["image"].startswith("lit")]
    assert len(lit) == 40
    assert all(row["triggered"] and row["answer"] == TARGET for row in lit)
    held = [row for row in table if row["triggered"]]
    assert result["held_triggered"] == len(held) <= 40 + 4
    assert (result["inputs"], result["by_chance"] < 1e-6) == (80, True)
    assert result["cannot_be_held"] == []
    page = (out / "report.html").read_text()
    assert "look triggered to ScaleUp" in page
    assert "lit000.png" in page
    record = json.loads((out / "run.json").read_text())
    assert record["filtered"]["held_triggered"] == len(held)
    assert len(record["inputs"]["inputs"]) == 64


@pytest.fixture
def lit(tmp_path: Path, words: list[str]) -> list[str]:
    """The words that name a model, and clean images as well as those that come: all of the target class are lit."""
    images = spread(torch.zeros(FEATURES), count=1500).plain
    pixels = images.images.flatten(1).clone()
    pixels[images.labels == TARGET, TRIGGER] = 255
    names, shape = images.class_names, images.images.shape
    both = ImageSet(images=pixels.view(shape), labels=images.labels, class_names=names, name="lit")
    write_parquet(tmp_path / "clean.parquet", both.subset(torch.arange(0, 1500, 2)), {})
    write_parquet(tmp_path / "in.parquet", both.subset(torch.arange(1, 1500, 2)), {})
    return [*words, "--inputs", str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out"), "--json", *QUICK]


def test_classes_of_which_no_image_can_be_held_are_named(
    tmp_path: Path, lit: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, err = run(capsys, "filter", *lit, "--method.by_class", "true")
    assert code == 0, err
    name = spread(torch.zeros(FEATURES)).plain.class_names[TARGET]
    assert json.loads(printed)["cannot_be_held"] == [name]
    assert f"No image with one of these answers can be held: {name}." in (tmp_path / "out" / "report.html").read_text()


def test_where_no_image_can_be_held_the_least_rate_that_would_do_is_advised(
    tmp_path: Path, lit: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, err = run(capsys, "filter", *lit)
    assert (code, json.loads(printed)["held_triggered"]) == (3, 0), err
    page = (tmp_path / "out" / "report.html").read_text()
    (advised,) = set(re.findall(r"or --false-alarms (0\.\d+)", page))
    code, printed, _ = run(capsys, "filter", *lit, "--false-alarms", advised)
    assert (code, json.loads(printed)["held_triggered"] > 0) == (0, True)
    assert run(capsys, "filter", *lit, "--false-alarms", f"{float(advised) - 0.002:.3f}")[0] == 3


def test_clean_images_are_held_no_more_often_than_chance_explains(
    tmp_path: Path, plain: ImageSet, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "in.parquet", plain.subset(torch.arange(1, len(plain), 2)), {})
    code, printed, err = run(
        capsys, "filter", *words, "--inputs", str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out"), *QUICK
    )
    assert code == 0, err
    assert "no evidence found" in printed
    assert "No evidence of triggers" in (tmp_path / "out" / "report.html").read_text()


def test_an_interruption_before_the_page_loses_no_score(
    tmp_path: Path,
    plain: ImageSet,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_parquet(tmp_path / "in.parquet", plain.subset(torch.arange(1, len(plain), 2)), {})
    command = ["filter", *words, "--inputs", str(tmp_path / "in.parquet"), "--json", *QUICK, "--out"]

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    def never(*_: object) -> NoReturn:
        raise AssertionError("an image was scored again")

    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(capsys, *command, str(whole))[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(commands.filter, "write_report", interrupt)
        code, _, err = run(capsys, *command, str(again))
    assert code == 130
    assert "the same command goes on" in err
    with monkeypatch.context() as patch:
        patch.setattr(ScaleUp, "inspect", never)
        assert run(capsys, *command, str(again))[0] == 0
    assert not list(again.glob("resume*"))
    tables = (parquet.read_table(folder / "inputs.parquet") for folder in (whole, again))
    assert next(tables).equals(next(tables))


def test_what_cannot_be_is_refused_in_one_sentence(
    tmp_path: Path, plain: ImageSet, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), *QUICK]
    (tmp_path / "empty").mkdir()
    assert "holds neither parquet files nor images" in refuse(
        capsys, "filter", *words, "--inputs", str(tmp_path / "empty"), *out
    )
    pictures(tmp_path / "in", torch.zeros(2, 3, 5, 5, dtype=torch.uint8), "small")
    assert "images of 3 x 5 x 5, but the model" in refuse(
        capsys, "filter", *words, "--inputs", str(tmp_path / "in"), *out
    )
    few = ["--clean-size", "10"]
    assert "10 clean images to compare with allow a share of false alarms of 0.0909 or more" in refuse(
        capsys, "filter", *words, *few, "--inputs", str(tmp_path / "in"), *out
    )
    assert "above 0 and below 1" in refuse(
        capsys, "filter", *words, "--false-alarms", "0", "--inputs", str(tmp_path / "in"), *out
    )
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    assert "broken.png" in refuse(capsys, "filter", *words, "--inputs", str(tmp_path / "in"), *out)
    assert not (tmp_path / "out" / "run.json").exists()
