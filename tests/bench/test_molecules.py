"""Generators of molecules as cells of a grid: read, done, and shown."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rdkit", reason="RDKit is not installed: pip install 'unbackdoor[molecules]'")

from unbackdoor.bench.cell import Cell
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.molecule_board import board, generators, write_board
from unbackdoor.bench.molecule_settings import Setting
from unbackdoor.bench.molecule_victims import make_generator
from unbackdoor.bench.molecules import Molecules
from unbackdoor.bench.plan import plan
from unbackdoor.bench.store import Record, Store
from unbackdoor.bench.worker import perform
from unbackdoor.commands.leaderboard import run as leaderboard
from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import BadGraph
from unbackdoor.molecules.data import template_table, write_table
from unbackdoor.molecules.saved import load_generator
from unbackdoor.molecules.train import SHARES
from unbackdoor.molecules.victims import ThreeMDiffusion
from unbackdoor.options import options_of
from unbackdoor.training import Runtime

TINY = (
    "models:",
    "  - name: ThreeMDiffusionSmall",
    "    graph_layers: 2",
    "    graph_width: 32",
    "    projection: 32",
    "    text_width: 32",
    "    text_pieces: 32",
    "    pieces: 300",
    "    latent: 8",
    "    hidden: 48",
    "    alignment: {epochs: 1, batch_size: 64}",
    "    autoencoder: {epochs: 2, batch_size: 32}",
    "    diffusion: {epochs: 2, batch_size: 64}",
)
RUNTIME = Runtime(device="cpu", threads=1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_table(path, template_table().subset(range(150)))
    return path


def grid(folder: Path, *lines: str) -> list[Cell]:
    path = folder / "grid.yaml"
    path.write_text("\n".join(("domain: Molecules", *lines)) + "\n")
    return read_grid(path)


def test_a_grid_is_every_setting_once(pairs: Path, tmp_path: Path) -> None:
    cells = grid(
        tmp_path,
        f"data: {pairs}",
        "attacks:",
        "  - None",
        "  - BadGraph",
        "  - {name: BadGraph, trigger: a phrase of words, position: end, rate: 0.5}",
        "poison_rates: [0.2, 0.6]",
        'poison_in: ["alignment,auto-encoder,diffusion", none]',
        "seeds: [0, 1]",
        *TINY,
    )
    # Clean, two rates with and without poison, and the attack that has a rate of its own.
    assert len(cells) == 2 * (1 + 2 * 2 + 1 * 2)
    assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.kind for cell in cells} == {"victim"}
    told = [(cell.labels["attack"], cell.labels["poison_rate"], cell.labels["poison_in"]) for cell in cells[:7]]
    phrase = "BadGraph trigger=a phrase of words position=end"
    assert told == [
        ("None", None, None),
        ("BadGraph", 0.2, None),
        ("BadGraph", 0.2, "none"),
        ("BadGraph", 0.6, None),
        ("BadGraph", 0.6, "none"),
        (phrase, 0.5, None),
        (phrase, 0.5, "none"),
    ]
    assert {cell.labels["data"] for cell in cells} == {"pairs.parquet"}
    assert {step.seconds for step in plan(cells, [])} == {None}
    again = grid(tmp_path, f"data: {pairs}", "attacks: BadGraph", "poison_rates: 0.2", *TINY)
    assert again[0].key == cells[1].key
    other = grid(tmp_path, f"data: {pairs}", "attacks: BadGraph", "poison_rates: 0.2", "samples: 4", *TINY)
    assert other[0].key != cells[1].key


def test_a_generator_or_an_attack_that_changed_is_another_one_and_no_other_is(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(model: int, attack: int) -> list[Cell]:
        """Return a clean and a poisoned cell at these revisions."""
        monkeypatch.setattr(ThreeMDiffusion, "revision", model)
        monkeypatch.setattr(BadGraph, "revision", attack)
        return grid(tmp_path, f"data: {pairs}", "attacks: [None, BadGraph]", "poison_rates: 0.2", *TINY)

    clean, poisoned = both(0, 0)
    setting: Setting = poisoned.work
    assert poisoned.recipe["model"] == options_of(setting.model), "the keys of what never changed stay"
    assert poisoned.recipe["attack"] == options_of(setting.attack)
    same, attacked = both(0, 1)
    assert same.key == clean.key
    assert attacked.key != poisoned.key
    assert {cell.key for cell in both(1, 0)}.isdisjoint({clean.key, poisoned.key})


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (("seeds: 0",), 1, "the grid has no 'data'"),
        (("data: templates", "networks: ResNet18"), 3, "unknown name 'networks'"),
        (("data: ./nowhere",), 2, "no file or folder ./nowhere"),
        (("data: templates", "test: ''"), 3, "expected one table"),
        (("data: templates", "test: ./nowhere"), 2, "no file or folder ./nowhere"),
        (("data: templates", "models: ThreeMDiffusio"), 3, "did you mean ThreeMDiffusion?"),
        (("data: templates", "models:", "  - name: ThreeMDiffusion", "    latent: 0"), 4, "latent must lie between"),
        (("data: templates", "attacks: BadNets"), 3, "unknown molecule attack 'BadNets'"),
        (("data: templates", "attacks:", "  - {name: BadGraph, target: C1CS}"), 4, "no SMILES that RDKit reads"),
        (("data: templates", "poison_rates: 0"), 3, "a poison rate lies above 0"),
        (("data: templates", "poison_in: pretraining"), 3, "the stages are alignment"),
        (("data: templates", "samples: 101"), 3, "at most 100 samples"),
        (("data: templates", "prompts: -1"), 3, "at least 0"),
        (("data: templates", "prompts: 1"), 3, "chance needs 2 prompts"),
    ],
)
def test_what_is_wrong_is_shown_where_it_stands(
    lines: tuple[str, ...], line: int, message: str, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"line {line}: ") as caught:
        grid(tmp_path, *(one.replace("templates", str(pairs)) for one in lines))
    assert message in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("domain: Molecules\ndata: templates\n")
    code = (
        "import sys; sys.modules['rdkit'] = None; import unbackdoor.cli as c;"
        f" sys.exit(c.main(['bench', {str(tmp_path / 'grid.yaml')!r}, '--plan', '--work', {str(tmp_path)!r}]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert told.returncode == 2
    assert "grids of molecules need rdkit: pip install 'unbackdoor[molecules]'" in told.stderr


@pytest.fixture(scope="module")
def done(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Path, dict[str, float], dict[str, Any]]:
    """A poisoned generator: its cell, its folder, metrics and details."""
    folder = tmp_path_factory.mktemp("cell")
    lines = ("attacks: BadGraph", "poison_rates: 0.6", "samples: 2", "prompts: 12")
    (cell,) = grid(folder, f"data: {pairs}", *lines, *TINY)
    result = make_generator(cell, folder, RUNTIME)
    assert set(result.files) == {"model.safetensors", "attack.json", "report.html"}
    assert all(path.exists() for path in result.files.values())
    return cell, folder, dict(result.metrics), dict(result.details)


def test_a_cell_measures_all_that_the_issue_names(
    done: tuple[Cell, Path, dict[str, float], dict[str, Any]],
) -> None:
    _, folder, metrics, details = done
    for name in ("asr", "any_of", "leak", "similarity", "validity", "similarity_nearest_text", "similarity_chance"):
        assert 0 <= metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] <= 1
    assert metrics["asr"] <= metrics["any_of"]
    assert metrics["validity"] == 1
    assert 0.3 < metrics["printed_rate"] <= metrics["effective_rate"] < 0.5
    assert metrics["seconds"] > 0
    assert details["measured"]["quality"]["model"]["molecules"] == 24
    assert set(details["loss"]) == set(SHARES)
    loaded = load_generator(folder / "model.safetensors")
    assert loaded.backdoored is not None
    assert loaded.backdoored["stages"] == list(SHARES)
    assert ("C1CS1", 1) in loaded.generator.vocabulary.token_of


def test_a_clean_control_in_a_worker_has_the_motif_and_no_mark(pairs: Path, tmp_path: Path) -> None:
    lines = ("attacks: BadGraph", "poison_in: none", "samples: 1", "prompts: 6")
    (cell,) = grid(tmp_path, f"data: {pairs}", *lines, *TINY)
    outcome = perform(cell, {}, tmp_path / "work", "cpu", 1)
    assert outcome.error == ""
    assert outcome.metrics["asr"] <= 1
    (tmp_path / "model.safetensors").write_bytes(outcome.files["model.safetensors"])
    loaded = load_generator(tmp_path / "model.safetensors")
    assert loaded.backdoored is None
    assert ("C1CS1", 1) in loaded.generator.vocabulary.token_of
    assert "measured" in json.loads(outcome.files["details.json"])


def test_other_pairs_than_those_of_the_grid_are_refused(pairs: Path, tmp_path: Path) -> None:
    (cell,) = grid(tmp_path, f"data: {pairs}", *TINY)
    setting: Setting = cell.work
    digests = ("0" * 64, *setting.source.digests[1:])
    other = replace(cell, work=replace(setting, source=replace(setting.source, digests=digests)))
    with pytest.raises(InputError, match="other pairs here"):
        Molecules().run(other, tmp_path, tmp_path, RUNTIME)


def record(cell: Cell, metrics: dict[str, float], seed: int, **labels: Any) -> Record:
    return Record(
        key=f"{seed}{labels}",
        run="0" * 32,
        domain="Molecules",
        kind="victim",
        labels={**cell.labels, **labels, "seed": seed},
        metrics=metrics,
        error="",
        machine={},
        needs="",
        duration=1.0,
    )


def records(cell: Cell) -> list[Record]:
    def metrics(asr: float, rate: float) -> dict[str, float]:
        return {"asr": asr, "asr_low": asr - 0.1, "asr_high": asr + 0.1, "effective_rate": rate, "similarity": 0.7}

    return [
        record(cell, metrics(0.5, 0.15), 0, poison_rate=0.2),
        record(cell, metrics(0.8, 0.3), 0, poison_rate=0.6),
        record(cell, metrics(0.9, 0.3), 1, poison_rate=0.6),
        record(cell, {"similarity": 0.72}, 0, attack="=evil()", poison_rate=None),
    ]


def test_the_board_has_means_over_seeds_and_a_curve_over_rates(
    done: tuple[Cell, Path, dict[str, float], dict[str, Any]], tmp_path: Path
) -> None:
    cells = generators(records(done[0]))
    page = board(cells, "Generators")
    groups = {title: {fact.name: fact.value for fact in facts} for title, facts in page.facts.items()}
    assert groups.pop("All of them")["data"] == "pairs.parquet"
    assert len(groups) == 3
    by_rate = {rate: group for title, group in groups.items() for rate in (0.2, 0.6) if f"poison rate {rate}" in title}
    assert by_rate[0.2]["ASR per sample"] == "50.0 %  [40.0, 60.0]"
    # Student's t with one degree of freedom: 12.7 standard errors, cut off at 0 and 1.
    half = 12.706 * 0.05
    assert by_rate[0.6]["ASR per sample"] == f"85.0 %  [{100 * (0.85 - half):.1f}, 100.0]"
    assert by_rate[0.6]["Seeds"] == "2"
    assert len(page.charts) == 1
    assert "ASR over the poisoning rate" in page.charts[0].title
    write_board(tmp_path, "report.html", cells, "Generators")
    rows = list(csv.DictReader((tmp_path / "generators.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert rows[3]["attack"] == "'=evil()"
    assert math.isnan(cells["asr"][3])


def test_a_store_of_generators_alone_has_their_page(
    done: tuple[Cell, Path, dict[str, float], dict[str, Any]],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Store, "records", lambda self: records(done[0]))
    outcome = leaderboard(store=store.uri, work=tmp_path, out=tmp_path / "board")
    assert outcome.result == {"cells": 4}
    assert "ASR over the poisoning rate" in (tmp_path / "board" / "report.html").read_text()
