"""Models that a grid names: where their attack is looked for, what they are called, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.bench.test_grid import grid, refusal
from unbackdoor.attacks import BadNets, Blended, WaNet, save_attack
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.victims import Given, take_victim
from unbackdoor.bench.worker import perform
from unbackdoor.data import read_images
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.folder import ATTACK, MODEL
from unbackdoor.models import load_model, save_model
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.options import options_of
from unbackdoor.training import Runtime, new_network

RUNTIME = Runtime(device="cpu", threads=1)


def made(
    folder: Path, attack: BadNets | Blended | None, *, model: str = MODEL, beside: str | None = ATTACK, seed: int = 0
) -> Path:
    """Write an untrained network and its attack; return the folder."""
    train = read_images("digits", "train")
    build = partial(new_network, partial(PreActResNet18, width=4), train, Runtime(device="cpu", threads=1, seed=seed))
    folder.mkdir(parents=True, exist_ok=True)
    mark = None
    if attack:
        fitted = attack.prepare(train, build, RUNTIME)
        mark = {"attack": options_of(attack), "criterion": fitted.criterion.to_json()}
        if beside:
            save_attack(folder / beside, fitted, options_of(attack))
    save_model(folder / model, build(), provenance={"program": "a test"}, backdoored=mark)
    return folder


def test_a_folder_and_a_file_with_its_attack_beside_it_are_found(tmp_path: Path) -> None:
    made(tmp_path / "run", BadNets(size=2))
    made(
        tmp_path / "kept",
        Blended(poison_rate=0.05),
        model="blended-7.safetensors",
        beside="blended-7.attack.safetensors",
    )
    made(tmp_path / "kept", None, model="clean.safetensors")
    lines = ("models:", f"  - {tmp_path}/run", f"  - {tmp_path}/kept/blended-7.safetensors")
    cells = grid(
        tmp_path, "data: digits", *lines, f"  - {tmp_path}/kept/clean.safetensors", "purify: FT", "seeds: [0, 1]"
    )
    victims = [cell for cell in cells if cell.kind == "victim"]
    told = [tuple(cell.labels[name] for name in ("network", "attack", "poison_rate", "training")) for cell in victims]
    assert told == 2 * [
        ("PreActResNet18 width=4", "BadNets size=2", 0.1, "given: run"),
        ("PreActResNet18 width=4", "Blended", 0.05, "given: blended-7"),
        ("PreActResNet18 width=4", "None", None, "given: clean"),
    ]
    assert len({cell.key for cell in cells}) == len(cells) == 12
    assert len({cell.title for cell in cells}) == 12


def test_a_model_stands_beside_attacks_and_takes_its_file_and_attack_by_name(tmp_path: Path) -> None:
    made(tmp_path, BadNets(), model="a.safetensors", beside="b.safetensors")
    named = f"models: {{file: {tmp_path}/a.safetensors, attack: {tmp_path}/b.safetensors}}"
    cells = grid(tmp_path, "data: digits", "attacks: BadNets", named)
    assert [cell.labels["training"] for cell in cells] == ["default", "given: a"]
    without = grid(tmp_path, "data: digits", f"models: {{file: {tmp_path}/a.safetensors, attack: None}}")
    assert without[0].labels["attack"] == "None"
    assert without[0].key != cells[1].key


def test_another_model_or_another_attack_is_another_victim(tmp_path: Path) -> None:
    keys = set()
    for number, (attack, seed) in enumerate([(BadNets(), 0), (BadNets(), 1), (BadNets(target=3), 0)]):
        folder = made(tmp_path / str(number), attack, seed=seed)
        (cell,) = grid(tmp_path, "data: digits", f"models: {folder}")
        keys.add(cell.key)
    assert len(keys) == 3
    moved = tmp_path / "moved"
    (tmp_path / "0").rename(moved)
    assert grid(tmp_path, "data: digits", f"models: {moved}")[0].key in keys


def refused(tmp_path: Path, entry: str) -> str:
    line, words = refusal(tmp_path, "data: digits", f"models: {entry}")
    assert line == 2
    return words


def test_what_cannot_be_a_victim_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "nowhere" in refused(tmp_path, f"{tmp_path}/nowhere")
    assert "which model?" in refused(tmp_path, "{attack: None}")
    assert "did you mean file?" in refused(tmp_path, "{fil: a}")
    folder = made(tmp_path / "marked", BadNets(), beside=None)
    assert "says of itself that it is backdoored" in refused(tmp_path, str(folder))
    assert "nowhere.safetensors" in refused(tmp_path, f"{{file: {folder}, attack: {tmp_path}/nowhere.safetensors}}")
    (folder / ATTACK).write_bytes(b"no attack")
    assert "no attack file, or is damaged" in refused(tmp_path, str(folder))
    (folder / MODEL).write_bytes(b"no model")
    assert "model.safetensors" in refused(tmp_path, str(folder))


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    import numpy as np

    folder = made(tmp_path / "run", BadNets())
    images = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", images=images, labels=np.arange(40) % 4)
    line, words = refusal(tmp_path, f"data: {tmp_path}/other.npz", f"models: {folder}")
    assert line == 2
    assert "tells 10 classes apart" in words


def test_a_given_victim_is_measured_as_it_is_and_a_changed_file_is_noticed(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", BadNets())
    (cell,) = grid(tmp_path, "data: digits", f"models: {folder}")
    assert isinstance(cell, Cell)
    assert isinstance(cell.work, Given)
    result = take_victim(cell, cell.work, tmp_path / "work", cell.work.runtime(RUNTIME))
    attack = BadNets()
    fitted = attack.prepare(read_images("digits", "train"), lambda: load_model(folder / MODEL).network, RUNTIME)
    expected = evaluate(
        load_model(folder / MODEL).network, read_images("digits", "test"), RUNTIME, fitted.trigger, fitted.criterion
    )
    assert result.details["evaluation"] == expected.to_json()
    assert set(result.files) == {MODEL, ATTACK, "report.html"}
    again = load_model(tmp_path / "work" / MODEL)
    assert again.backdoored == load_model(folder / MODEL).backdoored
    made(folder, BadNets(), seed=1)
    with pytest.raises(InputError, match="is another file here than when the grid was read"):
        take_victim(cell, cell.work, tmp_path / "work", RUNTIME)


def test_the_data_of_a_given_model_are_sifted_and_trained_on_with_its_own_network(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", BadNets(size=2))
    lines = ("sift: SCAn", "secure: [ABL, TrapAndReplace]", "clean_sizes: 100")
    cells = grid(tmp_path, "data: digits", f"models: {folder}", *lines)
    assert [cell.kind for cell in cells] == ["victim", "poison", "quick", "sift", "secure", "secure"]
    assert {cell.labels["training"] for cell in cells} == {"given: run"}
    assert all(cell.needs is cells[1] for cell in cells[4:])
    for cell in cells[4:]:
        network = cell.work.network
        assert (network.func, network.keywords) == (PreActResNet18, {"width": 4})
    given = perform(cells[1], {}, tmp_path / "work", "cpu", 1)
    assert given.error == ""
    assert given.files[ATTACK] == (folder / ATTACK).read_bytes()
    assert given.metrics["poisoned_rows"] == 144
    made(folder, BadNets(size=3))
    assert "is another file here" in perform(cells[1], {}, tmp_path / "work", "cpu", 1).error


def test_an_attack_that_poisoned_batches_in_training_leaves_no_data(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", None)
    train = read_images("digits", "train")
    fitted = WaNet().prepare(train, lambda: load_model(folder / MODEL).network, RUNTIME)
    save_attack(folder / ATTACK, fitted, options_of(WaNet()))
    assert [cell.kind for cell in grid(tmp_path, "data: digits", f"models: {folder}", "purify: FT")] == [
        "victim",
        "purify",
    ]
    line, words = refusal(tmp_path, "data: digits", f"models: {folder}", "sift: FCT")
    assert line == 2
    assert "the attack on run has no poisoned data; put sift into a grid without it" in words
