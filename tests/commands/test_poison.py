"""`unbackdoor poison` and `unbackdoor gallery`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.commands.conftest import NETWORK, QUICK
from tests.commands.test_cli import refuse, run
from unbackdoor.attacks import ATTACKS, BadNets, load_attack
from unbackdoor.data import read_images
from unbackdoor.training import Runtime


def test_a_poisoned_data_set_is_read_back_as_it_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    out = tmp_path / "poisoned"
    code, printed, _ = run(
        capsys, "poison", "--data", "digits", "--attack.cover_rate", "0.05", "--out", str(out), "--seed", "3", "--json"
    )
    assert code == 0
    clean, test = read_images("digits", "train"), read_images("digits", "test")
    attack = BadNets(cover_rate=0.05)
    fitted = attack.prepare(clean, lambda: pytest.fail("no model is needed"), Runtime(seed=3, threads=1))
    back = read_images(out, "train")
    assert torch.equal(back.images, fitted.train.images)
    assert torch.equal(back.labels, fitted.train.labels)
    assert torch.equal(read_images(out, "test").images, test.images)
    rows = datasets.load_dataset(str(out), split="train")
    kinds = torch.tensor(rows["poisoned"][:]).long() + 2 * torch.tensor(rows["cover"][:]).long()
    assert torch.equal(kinds, fitted.kinds.long())
    assert rows["original_label"][:] == clean.labels.tolist()
    saved = load_attack(out / "attack.safetensors")
    assert torch.equal(saved.kinds, fitted.kinds)
    assert torch.equal(saved.trigger.stamp(test.images), fitted.trigger.stamp(test.images))
    assert json.loads(printed)["kinds"] == torch.bincount(fitted.kinds.long()).tolist()
    assert (out / "report.html").stat().st_size > 10_000
    assert not (out / "preparation").exists()


def test_a_later_data_set_replaces_an_earlier_one_and_nothing_else(
    tmp_path: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "poisoned"
    for rate in ("0.1", "0.2"):
        assert run(capsys, "poison", "--data", "digits", "--attack.poison_rate", rate, "--out", str(out))[0] == 0
    assert int((load_attack(out / "attack.safetensors").kinds == 1).sum()) == round(
        0.2 * len(read_images(out, "train"))
    )
    words = refuse(capsys, "poison", "--data", "digits", "--out", str(victim))
    assert "holds the model.safetensors of another command" in words


@pytest.mark.parametrize("name", ["LIRA", "InputAware"])
def test_an_attack_that_learns_its_trigger_has_no_poisoned_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words = refuse(capsys, "poison", "--data", "digits", "--attack", name, "--out", str(tmp_path / "out"))
    assert f"{name} needs its own training, so it has no poisoned data; use `unbackdoor attack`" in words
    assert list(tmp_path.iterdir()) == [], "it is refused before anything is done"


@pytest.mark.parametrize("name", ["train-00000.parquet", "data/train-00000-of-00001.parquet"])
def test_parquet_files_of_somebody_else_are_never_replaced_or_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    theirs = tmp_path / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"precious")
    words = refuse(capsys, "poison", "--data", "digits", "--out", str(tmp_path / "theirs"))
    assert "holds parquet files that unbackdoor did not write; choose another --out" in words
    assert theirs.read_bytes() == b"precious"
    assert [path for path in (tmp_path / "theirs").rglob("*") if path.is_file()] == [theirs]


def test_an_interrupted_data_set_is_known_as_unfinished_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("unbackdoor.commands.poison.save_attack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(capsys, "poison", "--data", "digits", "--out", str(out))[0] == 130
    assert json.loads((out / "run.json").read_text())["finished"] is False
    assert not (out / "attack.safetensors").exists()
    assert run(capsys, "poison", "--data", "digits", "--out", str(out))[0] == 0
    assert json.loads((out / "run.json").read_text())["finished"] is True


def test_the_picture_of_an_attack_is_recorded_without_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    picture = tmp_path / "secret-folder" / "cat.png"
    picture.parent.mkdir()
    Image.new("RGB", (20, 20), "red").save(picture)
    words = ["--attack", "Blended", "--attack.picture", str(picture), "--out", str(tmp_path / "out")]
    assert run(capsys, "poison", "--data", "digits", *words)[0] == 0
    assert load_attack(tmp_path / "out" / "attack.safetensors").options["picture"] == "cat.png"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["inputs"]["picture cat.png"] == hashlib.sha256(picture.read_bytes()).hexdigest()
    assert "secret-folder" not in json.dumps(json.loads((tmp_path / "out" / "run.json").read_text())["options"])


@pytest.mark.slow
def test_the_gallery_shows_every_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gallery"
    words = [
        "--data",
        "digits",
        "--model",
        "PreActResNet18",
        "--model.width",
        "4",
        "--images",
        "500",
        "--threads",
        "1",
    ]
    code, printed, _ = run(capsys, "gallery", *words, "--out", str(out), "--json")
    assert code == 0
    found = json.loads(printed)
    assert set(found["stealth"]) | set(found["refused"]) == set(ATTACKS)
    assert not found["refused"], found["refused"]
    assert all(one["changed"] > 0 for one in found["stealth"].values())
    page = (out / "report.html").read_text()
    assert all(f">{name}<" in page for name in ATTACKS)
    assert not (out / "preparation").exists()


def test_a_model_trained_on_data_that_we_poisoned_says_so_and_its_attack_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "poisoned"
    assert run(capsys, "poison", "--data", "digits", "--out", str(data))[0] == 0
    words = [
        "--data",
        str(data),
        "--out",
        str(tmp_path / "model"),
        *NETWORK,
        "--recipe.epochs",
        "1",
        *QUICK[2:],
        "--json",
    ]
    code, printed, _ = run(capsys, "train", *words)
    assert code == 0
    assert json.loads(printed)["evaluation"]["asr"]["trials"] > 100
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        mark = json.loads(file.metadata()["unbackdoor"])["backdoored"]
    assert mark["attack"]["name"] == "BadNets"
    assert mark["criterion"] == {"kind": "all-to-one", "target": 0}
