"""An attack is measured on models and data that it fits, and the record says which files were measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.commands.networks import tiny_network
from tests.commands.test_cli import refuse, run
from unbackdoor.attacks import AllToAll, AllToOne, Attack, BadNets, Criterion, FittedAttack, save_attack
from unbackdoor.data import read_images
from unbackdoor.models import save_model
from unbackdoor.options import options_of
from unbackdoor.training import Runtime


def write_attack(folder: Path, criterion: Criterion | None = None) -> None:
    """Write an attack on the digits, perhaps with another criterion than its own."""
    attack: Attack = BadNets()
    fitted = attack.prepare(read_images("digits", "train"), tiny_network, Runtime(device="cpu", threads=1))
    changed = FittedAttack(
        train=fitted.train,
        kinds=fitted.kinds,
        original_labels=fitted.original_labels,
        trigger=fitted.trigger,
        criterion=criterion or fitted.criterion,
    )
    save_attack(folder / "attack.safetensors", changed, options_of(attack))


def words(folder: Path) -> list[str]:
    model = str(folder / "m.safetensors")
    attack, out = str(folder / "badnets"), str(folder / "o")
    return ["evaluate", "--model", model, "--data", "digits", "--attack", attack, "--out", out, "--threads", "1"]


@pytest.mark.parametrize(
    ("criterion", "says"), [(AllToOne(target=10), "wants class 10"), (AllToAll(classes=12), "is for 12 classes")]
)
def test_an_attack_on_other_classes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], criterion: Criterion, says: str
) -> None:
    save_model(tmp_path / "m.safetensors", tiny_network(), provenance={})
    (tmp_path / "badnets").mkdir()
    write_attack(tmp_path / "badnets", criterion)
    assert says in refuse(capsys, *words(tmp_path))


def test_an_attacked_model_of_other_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m.safetensors", tiny_network(), provenance={})
    save_model(tmp_path / "badnets" / "model.safetensors", tiny_network(12), provenance={})
    write_attack(tmp_path / "badnets")
    assert "12" in refuse(capsys, *words(tmp_path))


def test_the_record_names_all_that_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m.safetensors", tiny_network(), provenance={})
    save_model(tmp_path / "badnets" / "model.safetensors", tiny_network(seed=1), provenance={})
    write_attack(tmp_path / "badnets")
    code, _, err = run(capsys, *words(tmp_path))
    assert code == 0, err
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    for name, file in RECORDED.items():
        assert record["inputs"][name] == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
    assert record["inputs"]["digits/test"] == read_images("digits", "test").digest()
    assert record["options"]["model"] == {"name": "WRN16x1", "width": 2}
    assert record["options"]["attack"] == options_of(BadNets())


RECORDED = {
    "m.safetensors": "m.safetensors",
    "attack badnets": "badnets/attack.safetensors",
    "badnets/model.safetensors": "badnets/model.safetensors",
}


def test_the_attack_s_own_file_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m.safetensors", tiny_network(), provenance={})
    write_attack(tmp_path / "badnets")
    shown = []
    for attack in (tmp_path / "badnets", tmp_path / "badnets" / "attack.safetensors"):
        code, out, err = run(capsys, *words(tmp_path), "--attack", str(attack), "--json")
        assert code == 0, err
        shown.append(json.loads(out)["evaluation"])
    assert shown[0] == shown[1]
    assert shown[0]["asr"] is not None
