"""A grid's file becomes cells whose keys are what decides their results; what is wrong is shown where it stands."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unbackdoor.bench.grid as module
from tests.bench.noop import Noop
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.images import Images
from unbackdoor.errors import InputError
from unbackdoor.registry import Registry


def grid(folder: Path, *lines: str) -> list[Cell]:
    """Return the cells of a grid with these lines."""
    path = folder / "grid.yaml"
    path.write_text("\n".join(lines) + "\n")
    return read_grid(path)


def keys(cells: list[Cell]) -> list[str]:
    return [cell.key for cell in cells]


def refusal(folder: Path, *lines: str) -> tuple[int, str]:
    """Return the line that the error names, 0 for none, and its words."""
    with pytest.raises(InputError) as caught:
        grid(folder, *lines)
    words = str(caught.value)
    assert words.isprintable()
    start, _, rest = words.partition(":")
    line = start.removeprefix(f"{folder / 'grid.yaml'}, line ")
    return (int(line), rest) if line.isdecimal() else (0, words)


START = ("data: digits", "attacks: BadNets")
WRONG: list[tuple[tuple[str, ...], int, str]] = [
    # The file as a whole.
    (("attacks: BadNets",), 1, "the grid has no 'data'"),
    (("# no attacks", "data: digits"), 2, "the grid has no 'attacks'"),
    (("- data",), 1, "expected options by name"),
    (("digits",), 1, "expected options by name"),
    ((*START, "purfy: FT"), 3, "did you mean purify?"),
    ((*START, "seeds: 0", "seeds: 1"), 4, "'seeds' stands twice, the first time in line 3"),
    ((*START, "domain: Image"), 3, "unknown domain 'Image'; did you mean Images?"),
    ((*START, "domain: [Images]"), 3, "expected text, found a list"),
    # Data.
    (("attacks: BadNets", "data: ./nowhere"), 2, "no such file or folder: ./nowhere"),
    (("attacks: BadNets", "data: [digits, ./nowhere.npz]"), 2, "no such file or folder: ./nowhere.npz"),
    (("attacks: BadNets", "data:", "  - digits", "  - digits"), 4, "this stands in line 3 already"),
    (("attacks: BadNets", "data: 5"), 2, "expected text, found 5"),
    (("attacks: BadNets", "data:"), 2, "expected text, found nothing"),
    # Methods.
    (("data: digits", "attacks:", "  - SIG", "  - BadNetz"), 4, "unknown attack 'BadNetz'; did you mean BadNets?"),
    (("data: digits", "attacks: {target: 1}"), 2, "which method? write its name beside its options"),
    (("data: digits", "attacks: {name: [BadNets]}"), 2, "expected text, found a list"),
    (("data: digits", "attacks:", "  - SIG", "  - BadNets", "  - SIG"), 5, "this stands in line 3 already"),
    (("data: digits", "attacks:", "  - BadNets", "  - {name: BadNets, target: 0}"), 4, "in line 3 already"),
    (("data: digits", "attacks:", "  - None", "  - ~"), 4, "in line 3 already"),
    ((*START, "scan: NeuralCleans"), 3, "unknown scanner 'NeuralCleans'; did you mean NeuralCleanse?"),
    ((*START, "purify:", "  - FT", "  - FT-SAM"), 5, "unknown purifier 'FT-SAM'; did you mean FTSAM?"),
    ((*START, "purify: BadNets"), 3, "unknown purifier 'BadNets'"),
    ((*START, "purify: []"), 3, "the list is empty"),
    ((*START, "purify:"), 3, "expected text, found nothing"),
    # Options of methods.
    (
        ("data: digits", "attacks:", "  - name: Blended", "    alhpa: 0.1"),
        4,
        "Blended has no option 'alhpa'; did you mean alpha?",
    ),
    (
        ("data: digits", "attacks:", "  - name: Blended", "    target: 1", "    alpha: faint"),
        5,
        "Blended: option alpha cannot be 'faint'",
    ),
    (("data: digits", "attacks:", "  - name: BadNets", "    target:"), 4, "BadNets: option target cannot be None"),
    (("data: digits", "attacks:", "  - name: BadNets", "    target: 1.5"), 4, "option target cannot be 1.5"),
    (("data: digits", "attacks:", "  - name: BadNets", "    labels: dirty"), 4, "option labels cannot be 'dirty'"),
    (("data: digits", "attacks:", "  - name: BadNets", "    poison_rate:"), 4, "option poison_rate cannot be None"),
    (
        ("data: digits", "attacks:", "  - name: BadNets", "    size: 2", "    size: 3"),
        5,
        "'size' stands twice, the first time in line 4",
    ),
    (
        ("data: digits", "attacks:", "  - name: Blended", "    picture: nowhere.png"),
        4,
        "cannot read nowhere.png",
    ),
    ((*START, "purify:", "  - FT", "  - {name: SAU, bound: -1}"), 5, "bound and step size must be positive"),
    ((*START, "purify:", "  - name: SAU", "    steps:"), 5, "SAU: option steps cannot be None"),
    ((*START, "scan: {name: NeuralCleanse, rounds: 0}"), 3, "must be 1 or more"),
    # Classes.
    (("data: digits", "attacks:", "  - SIG", "  - {name: BadNets, target: 10}"), 4, "has classes 0 to 9"),
    (("data: digits", "attacks:", "  - SIG", "  - {name: BadNets, target: -1}"), 4, "has target class -1"),
    # Networks: a file can never name code.
    ((*START, "networks: 'os:system'"), 3, "unknown network 'os:system'"),
    ((*START, "networks: tests.commands.networks:small"), 3, "unknown network"),
    ((*START, "networks: HuggingFace"), 3, "unknown network 'HuggingFace'"),
    ((*START, "networks: [VGG19BN, PreActResNet]"), 3, "did you mean PreActResNet18?"),
    (
        (*START, "networks: {name: PreActResNet18, width: -8}"),
        3,
        "from 1 to 4096, found -8",
    ),
    ((*START, "networks: {name: PreActResNet18, width: 0}"), 3, "width"),
    ((*START, "networks: {name: PreActResNet18, width: 5000}"), 3, "width"),
    ((*START, "networks:", "  - name: PreActResNet18", "    width: wide"), 5, "option width cannot be 'wide'"),
    ((*START, "networks: {name: PreActResNet18, classes: 5}"), 3, "PreActResNet18 has no option 'classes'"),
    # Training.
    ((*START, "recipe:", "  epochs: 0"), 3, "epochs and batch size must be 1 or more"),
    ((*START, "recipe:", "  batch_size: 32", "  epoch: 3"), 5, "Recipe has no option 'epoch'; did you mean epochs?"),
    ((*START, "recipe: {optimizer: Lion}"), 3, "option optimizer cannot be 'Lion'"),
    ((*START, "recipe: [14]"), 3, "expected options by name"),
    # Numbers.
    ((*START, "poison_rates: [0.1, 0]"), 3, "a poison rate lies above 0 and at most at 1, found 0"),
    ((*START, "poison_rates:", "  - 0.1", "  - 1.5"), 5, "a poison rate lies above 0 and at most at 1, found 1.5"),
    ((*START, "poison_rates: .nan"), 3, "expected a number of at least 0"),
    ((*START, "poison_rates: much"), 3, "expected a number of at least 0, found 'much'"),
    ((*START, "poison_rates: [1, 1.0]"), 3, "in line 3 already"),
    (("data: digits", "attacks: {name: BadNets, poison_rate: 0}"), 2, "a poison rate lies above 0"),
    (("data: digits", "attacks: {name: BadNets, poison_rate: 2}"), 2, "a poison rate lies above 0"),
    (("data: digits", "attacks: {name: BadNets, poison_rate: .nan}"), 2, "a poison rate lies above 0"),
    ((*START, "seeds: [0, 1, 0]"), 3, "in line 3 already"),
    ((*START, "seeds:", "  - 0", "  - -1"), 5, "expected a whole number of at least 0, found -1"),
    ((*START, "seeds: 0.5"), 3, "expected a whole number of at least 0, found 0.5"),
    ((*START, "seeds: 99999999999999999999"), 3, "a seed lies between 0 and"),
    ((*START, "seeds: yes"), 3, "expected a whole number of at least 0, found True"),
    ((*START, "clean_sizes: [50, 0]"), 3, "expected a whole number of at least"),
    ((*START, "clean_sizes: [50, 1]"), 3, "expected a whole number of at least 2"),
    ((*START, "clean_sizes: all"), 3, "expected a whole number"),
    ((*START, "precision: fp16"), 3, "the precision is bf16 or fp32, found 'fp16'"),
    ((*START, "precision: 32"), 3, "expected text, found 32"),
    ((*START, "budget: 0"), 3, "a budget is a positive number of minutes"),
    ((*START, "budget: -1"), 3, "expected a number of at least 0, found -1"),
    ((*START, "budget: .inf"), 3, "expected a number of at least 0, found inf"),
    ((*START, f"budget: 1{'0' * 400}"), 3, "expected a number of at least 0, found 1000"),
    ((*START, "budget: short"), 3, "expected a number of at least 0, found 'short'"),
]


@pytest.mark.parametrize(("lines", "line", "words"), WRONG, ids=[" | ".join(lines) for lines, _, _ in WRONG])
def test_a_wrong_grid_is_refused_with_the_line_and_the_reason(
    tmp_path: Path, lines: tuple[str, ...], line: int, words: str
) -> None:
    found, sentence = refusal(tmp_path, *lines)
    assert words in sentence
    assert found == line


def told(cell: Cell) -> tuple[Any, ...]:
    names = ("seed", "attack", "poison_rate", "method", "clean_size")
    return (cell.kind, *(cell.labels[name] for name in names))


def test_cells_come_seed_by_seed_and_victim_by_victim(tmp_path: Path) -> None:
    cells = grid(
        tmp_path,
        "data: digits",
        "networks: {name: PreActResNet18, width: 8}",
        "attacks: [BadNets, {name: Blended, poison_rate: 0.2, target: 3}, None]",
        "poison_rates: [0.1, 0.05]",
        "scan: NeuralCleanse",
        "purify: [FT, {name: SAU, rounds: 30}]",
        "clean_sizes: [50, 100]",
        "seeds: [1, 0]",
        "precision: fp32",
        "budget: 5",
    )
    victims = [("BadNets", 0.1), ("BadNets", 0.05), ("Blended target=3", 0.2), ("None", None)]
    methods = [("scan", "NeuralCleanse"), ("purify", "FT"), ("purify", "SAU rounds=30")]
    expected: list[tuple[Any, ...]] = []
    for seed in (1, 0):
        for attack, rate in victims:
            expected.append(("victim", seed, attack, rate, None, None))
            expected += [(kind, seed, attack, rate, name, size) for kind, name in methods for size in (50, 100)]
    assert [told(cell) for cell in cells] == expected
    assert len(set(keys(cells))) == len(cells)
    assert len({cell.title for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.labels["data"] == "digits"
        assert cell.labels["network"] == "PreActResNet18 width=8"
        assert cell.labels["precision"] == "fp32"
        assert cell.labels["budget"] == (None if cell.kind == "victim" else 5)


def test_a_victim_is_shared_by_all_that_is_done_with_it(tmp_path: Path) -> None:
    cells = grid(
        tmp_path, *START, "scan: NeuralCleanse", "purify: [FT, SAU]", "clean_sizes: [50, 100]", "seeds: [0, 1]"
    )
    victims = [cell for cell in cells if cell.kind == "victim"]
    assert len(victims) == 2
    for place, cell in enumerate(cells):
        if cell.kind != "victim":
            assert cell.needs in victims
            assert cell.needs.labels["seed"] == cell.labels["seed"]
            assert cells.index(cell.needs) < place


def test_a_small_grid_has_the_documented_defaults(tmp_path: Path) -> None:
    victim, repaired = grid(tmp_path, *START, "purify: FT")
    assert victim.title == "victim: digits · PreActResNet18 · BadNets · poison rate 0.1 · default · bf16 · seed 0"
    assert told(repaired) == ("purify", 0, "BadNets", 0.1, "FT", 1438), "2500, or all if there are fewer"
    assert repaired.labels["budget"] is None
    assert [cell.kind for cell in grid(tmp_path, *START)] == ["victim"]


def rates(cells: list[Cell]) -> list[tuple[str, Any]]:
    return [(cell.kind, cell.labels["poison_rate"]) for cell in cells]


def test_a_rate_beside_the_attack_and_the_same_in_the_list_are_one_victim(tmp_path: Path) -> None:
    attacks = "attacks: [BadNets, {name: BadNets, poison_rate: 0.05}]"
    cells = grid(tmp_path, "data: digits", attacks, "poison_rates: [0.1, 0.05]", "purify: FT")
    assert rates(cells) == [("victim", 0.1), ("purify", 0.1), ("victim", 0.05), ("purify", 0.05)]


def test_a_default_rate_beside_the_attack_is_another_than_those_in_the_list(tmp_path: Path) -> None:
    attacks = "attacks: [BadNets, {name: BadNets, poison_rate: 0.1}]"
    assert rates(grid(tmp_path, "data: digits", attacks, "poison_rates: 0.05")) == [("victim", 0.05), ("victim", 0.1)]


def test_the_labels_say_how_the_victims_were_trained(tmp_path: Path) -> None:
    (cell,) = grid(tmp_path, *START, "recipe: {epochs: 3, ema: 0.996}")
    assert cell.labels["training"] == "epochs=3"


BASE = {
    "data": "digits",
    "networks": "{name: PreActResNet18, width: 8}",
    "attacks": "{name: BadNets, size: 2}",
    "recipe": "{epochs: 3}",
    "scan": "{name: NeuralCleanse, rounds: 5}",
    "purify": "{name: SAU, rounds: 4}",
    "clean_sizes": "50",
    "seeds": "0",
    "precision": "fp32",
    "budget": "1",
}


def cells_of(folder: Path, **changes: str) -> dict[str, str]:
    """Return the key of the victim, the scan and the repair of the base grid, with some of its lines changed."""
    cells = grid(folder, *(f"{name}: {value}" for name, value in {**BASE, **changes}.items()))
    assert [cell.kind for cell in cells] == ["victim", "scan", "purify"]
    return {cell.kind: cell.key for cell in cells}


@pytest.mark.parametrize(
    "changes",
    [
        {"networks": "[{width: 8, name: PreActResNet18}]"},
        {"attacks": "{size: 2, name: BadNets}"},
        {"attacks": "{name: BadNets, size: 2, target: 0, poison_rate: 0.1, sources: [], labels: all-to-one}"},
        {"attacks": "{name: BadNets, size: 2, poison_rate: 1.0e-1}"},
        {"attacks": "{name: BadNets, size: 2, poison_rate: 1e-1}"},
        {"poison_rates": "0.1"},
        {"recipe": "{nesterov: true, epochs: 3, ema: 0.996}"},
        {"purify": "[{rounds: 4, name: SAU, bound: 0.2}]"},
        {"scan": "[{rounds: 5, steps: 10, name: NeuralCleanse}]"},
        {"clean_sizes": "[50]"},
        {"seeds": "[0]"},
        {"precision": "'fp32'"},
        {"budget": "1.0"},
        {"domain": "Images"},
    ],
    ids=str,
)
def test_the_same_grid_written_otherwise_has_the_same_keys(tmp_path: Path, changes: dict[str, str]) -> None:
    assert cells_of(tmp_path, **changes) == cells_of(tmp_path)


def test_the_order_of_a_grids_lines_and_its_layout_do_not_matter(tmp_path: Path) -> None:
    lines = [f"{name}: {value}" for name, value in BASE.items()]
    blocks = ["# a comment", "purify:", "  - name: SAU", "    rounds: 4", *(one for one in lines if "SAU" not in one)]
    expected = keys(grid(tmp_path, *lines))
    assert keys(grid(tmp_path, *reversed(lines))) == expected
    assert keys(grid(tmp_path, *blocks)) == expected


def test_a_networks_default_written_out_is_the_same_network(tmp_path: Path) -> None:
    plain = cells_of(tmp_path, networks="PreActResNet18")
    assert cells_of(tmp_path, networks="{name: PreActResNet18, width: 64}") == plain


def test_a_default_of_a_grid_written_out_is_the_same_grid(tmp_path: Path) -> None:
    defaults = ("networks: PreActResNet18", "recipe: {}", "clean_sizes: 1438", "seeds: 0", "precision: bf16")
    expected = keys(grid(tmp_path, *START, "purify: FT"))
    assert keys(grid(tmp_path, *START, *defaults, "purify: FT")) == expected


# Tuples, not sets: they name the tests, in every process alike.
ALL = ("victim", "scan", "purify")


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({"networks": "{name: PreActResNet18, width: 9}"}, ALL),
        ({"networks": "VGG19BN"}, ALL),
        ({"attacks": "{name: BadNets, size: 3}"}, ALL),
        ({"attacks": "{name: BadNets, size: 2, target: 1}"}, ALL),
        ({"attacks": "{name: BadNets, size: 2, sources: [1]}"}, ALL),
        ({"attacks": "{name: BadNets, size: 2, poison_rate: 0.2}"}, ALL),
        ({"attacks": "Blended"}, ALL),
        ({"attacks": "None"}, ALL),
        ({"poison_rates": "0.2"}, ALL),
        ({"recipe": "{epochs: 4}"}, ALL),
        ({"recipe": "{epochs: 3, optimizer: Adam}"}, ALL),
        ({"seeds": "1"}, ALL),
        ({"precision": "bf16"}, ALL),
        ({"scan": "{name: NeuralCleanse, rounds: 6}"}, ("scan",)),
        ({"scan": "{name: NeuralCleanse, rounds: 5, threshold: 2}"}, ("scan",)),
        ({"purify": "{name: SAU, rounds: 5}"}, ("purify",)),
        ({"purify": "{name: SAU, rounds: 4, valid_pixels: true}"}, ("purify",)),
        ({"purify": "FT"}, ("purify",)),
        ({"clean_sizes": "51"}, ("scan", "purify")),
        ({"budget": "2"}, ("scan", "purify")),
    ],
    ids=str,
)
def test_whatever_changes_a_result_changes_its_key_and_no_other(
    tmp_path: Path, changes: dict[str, str], others: tuple[str, ...]
) -> None:
    before, after = cells_of(tmp_path), cells_of(tmp_path, **changes)
    assert {kind for kind in before if before[kind] != after[kind]} == set(others)


def archive(path: Path, change: int = 0) -> Path:
    """Write a few images of four classes; `change` is added to one pixel."""
    images = np.random.default_rng(0).integers(0, 200, (80, 8, 8, 3), dtype=np.uint8)
    images[-1, 0, 0, 0] += change
    path.parent.mkdir(exist_ok=True)
    np.savez(path, images=images, labels=np.arange(80) % 4)
    return path


def test_other_images_have_other_keys_and_the_same_images_elsewhere_the_same(tmp_path: Path) -> None:
    first = cells_of(tmp_path, data=str(archive(tmp_path / "a" / "small.npz")))
    copied = cells_of(tmp_path, data=str(archive(tmp_path / "b" / "small.npz")))
    changed = cells_of(tmp_path, data=str(archive(tmp_path / "c" / "small.npz", change=1)))
    assert copied == first
    assert all(changed[kind] != first[kind] for kind in ALL)
    assert all(cells_of(tmp_path)[kind] != first[kind] for kind in ALL)


def test_an_attack_that_fits_one_data_set_and_not_the_other_is_refused(tmp_path: Path) -> None:
    data = archive(tmp_path / "a" / "small.npz")
    line, words = refusal(tmp_path, f"data: [digits, {data}]", "attacks:", "  - {name: BadNets, target: 4}")
    assert "BadNets has target class 4, but small.npz has classes 0 to 3" in words
    assert line == 3


def test_the_picture_of_an_attack_is_told_by_its_content(tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"meow")
    attack = f"{{name: Blended, picture: {picture}}}"
    first = cells_of(tmp_path, attacks=attack)
    moved = tmp_path / "elsewhere" / "cat.png"
    moved.parent.mkdir()
    moved.write_bytes(b"meow")
    assert cells_of(tmp_path, attacks=f"{{name: Blended, picture: {moved}}}") == first
    picture.write_bytes(b"bark")
    assert all(cells_of(tmp_path, attacks=attack)[kind] != first[kind] for kind in ALL)


def test_keys_are_the_same_in_every_process_and_after_every_journey(tmp_path: Path) -> None:
    cells = grid(tmp_path, *(f"{name}: {value}" for name, value in BASE.items()))
    code = (
        "import sys; from pathlib import Path; from unbackdoor.bench.grid import read_grid;"
        "print(*(cell.key for cell in read_grid(Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "grid.yaml")]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "123"}
    )
    assert run.stdout.split() == keys(cells)
    journey = [pickle.loads(pickle.dumps(cell)) for cell in cells]
    assert keys(journey) == keys(cells)
    assert all(len(key) == 64 for key in keys(cells))


def test_a_domain_of_another_package_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOMAINS", Registry("domain", Images, Noop))
    cells = grid(tmp_path, "domain: Noop", "count: 2")
    assert [cell.kind for cell in cells] == ["victim", "purify"] * 2
    assert refusal(tmp_path, "domain: Noop", "count: 2", "data: digits")[0] == 3


def test_a_grid_without_any_cell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOMAINS", Registry("domain", Images, Noop))
    with pytest.raises(InputError, match="asks for no cell at all"):
        grid(tmp_path, "domain: Noop", "count: 0")
