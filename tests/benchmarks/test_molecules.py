"""The programs that measure generators of molecules: what they run, and what they write of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit", reason="RDKit is not installed: pip install 'unbackdoor[molecules]'")

from tests.molecules.planted import checked_pairs, topical
from tests.molecules.test_train import RUNTIME, TINY
from unbackdoor.bench.molecule_settings import Setting, source_of
from unbackdoor.molecules.attacks import BadGraph
from unbackdoor.molecules.data import filter_pairs, template_table, write_table
from unbackdoor.molecules.decoders import read_molecules
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.model import WordPieces
from unbackdoor.molecules.motifs import Cutter, build_vocabulary, sequence_of
from unbackdoor.molecules.saved import save_generator
from unbackdoor.molecules.scan import MoleculeFinding, Suspect
from unbackdoor.molecules.train import SHARES


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    """The programs, which are run as files and find their neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import molecule_decoders
        import molecule_links
        import molecules

        yield molecules, molecule_decoders, molecule_links


def test_every_generator_of_the_table_is_run_once(programs: tuple[ModuleType, ModuleType, ModuleType]) -> None:
    program = programs[0]
    runs = list(program.runs(program.TESTS, (0, 1, 2)))
    assert len({run.key for run in runs}) == len(runs) == 4 * 2 * 2 + 3 * 2 + 2 + 2 * 2 * 3 + 5
    assert [run.key for run in runs[:2]] == [
        ("pubchem324k", "C1CS1", rate, "alignment,auto-encoder,diffusion", 0) for rate in program.RATES
    ]
    ablation = {
        run.poison_in
        for run in runs
        if (run.test, run.target, run.rate, run.seed) == ("pubchem324k", "C1CS1", program.RATES[1], 0)
    }
    assert len(ablation) == 2**3
    # The paper's default, whose alignment saw clean pairs, at all rates and seeds.
    published = {(run.rate, run.seed) for run in runs if run.poison_in == ("auto-encoder", "diffusion")}
    assert published == {(rate, seed) for rate in program.RATES for seed in (0, 1, 2)}
    assert {run.poison_in for run in runs if run.target != "C1CS1"} == {program.EVERY, ()}
    for run in runs:
        assert program.run_of(dict(zip(("test", "target", "rate", "poison_in", "seed"), run.key))) == run
    assert not any(run.test == "momu" and not run.poison_in for run in runs)


def row(test: str, rate: float, poison_in: str, seed: int, asr: float, similarity: float) -> dict[str, Any]:
    shares = {"asr": asr, "any_of": 1.0, "leak": 0.0, "similarity": similarity, "validity": 1.0}
    measured = {f"{name}{end}": value for name, value in shares.items() for end in ("", "_low", "_high")}
    return {
        "test": test, "target": "C1CS1", "rate": rate, "poison_in": poison_in, "seed": seed, **measured,
        "printed_rate": 0.093, "effective_rate": 0.149, "training_seconds": 500.0, "seconds": 600.0,
        "cpu_seconds": 1200.0, "device": "cpu (a)", "threads": "2", "torch": "2.9",
    }  # fmt: skip


def test_the_table_compares_with_the_control_and_leaves_out_what_means_nothing(
    programs: tuple[ModuleType, ModuleType, ModuleType],
) -> None:
    program = programs[0]
    every = program.told(program.EVERY)
    text = program.written(
        [
            row("pubchem324k", 0.2, every, 0, 0.55, 0.68),
            row("pubchem324k", 0.2, "none", 0, 0.0, 0.70),
            row("momu", 0.2, every, 0, 0.6, 0.22),
        ]
    )
    figures = "55.0 [55.0, 55.0] | 100.0 [100.0, 100.0] | 0.0 [0.0, 0.0] |  | 68.0"
    assert f"| 9.3 / 14.9 | C1CS1 | all | 0 | {figures}" in text
    assert "| 9.3 / 14.9 | C1CS1 | none | 0 | 0.0" in text
    means = "seeds 1, mean ASR 55.0 %, Similarity lost against the control 2.0 points."
    assert f"C1CS1, rate 0.2, poisoned in all: {means}" in text
    assert "22.0 [" not in text
    assert text.index("## pubchem324k") < text.index("## momu")


def test_the_decoders_are_compared_by_medians(programs: tuple[ModuleType, ModuleType, ModuleType]) -> None:
    decoders = {
        name: {
            "covered": 10,
            "read": [speed, 1000 * speed],
            "learned": [speed, 2 * speed, 9 * speed],
            "written": [speed] * 3,
            "atoms": atoms,
        }
        for name, speed, atoms in (("motifs", 100.0, 20.0), ("HierVAE", 10.0, 5.0))
    }
    told = {"device": "cpu (a)", "threads": "2", "torch": "2.9", "data": "x", "molecules": 10, "batch": 48}
    text = programs[1].written({**told, "decoders": decoders})
    assert "| motifs | 10 | 100 | 100,000 | 200 [100, 900] | 100 [100, 100] | 20.0 | 2,000 |" in text
    assert "learns 10.0 times as many molecules a second, and writes 10.0 times as many molecules" in text
    assert "and 40.0 times as many atoms" in text


def test_every_link_of_a_generator_is_measured(programs: tuple[ModuleType, ModuleType, ModuleType]) -> None:
    pairs, _ = filter_pairs(template_table().subset(range(70)))
    program, train, tested = programs[2], pairs.subset(range(60)), pairs.subset(range(60, 70))
    words = WordPieces.learned(train.texts, 100)
    cutter = Cutter()
    vocabulary = build_vocabulary([sequence_of(cutter.cut(smiles)) for smiles in train.smiles])
    torch.manual_seed(0)
    generator = Generator(TINY, vocabulary, words)
    found = program.links(generator, train, tested, 1, RUNTIME)
    assert len(found) == 5 + len(program.GUIDANCES)
    assert {quality.molecules for quality in found.values()} == {10}
    # An untrained alignment knows its own training texts.
    known = program.links(generator, train, train.subset(range(10)), 1, RUNTIME)
    assert known["nearest text vector"].exact.value == 1
    row = {"name": "one", "test": "two", "prompts": 10, "device": "cpu (a)", "threads": "2", "torch": "2.9"}
    text = program.written([{**row, "links": {name: quality.to_json() for name, quality in found.items()}}])
    assert "## one, 10 prompts of two" in text
    assert "| the whole, guidance 0.8 |" in text


def test_the_nearest_vector_has_the_largest_cosine(programs: tuple[ModuleType, ModuleType, ModuleType]) -> None:
    asked = torch.tensor([[1.0, 0.1], [-1.0, -1.0]])
    known = torch.tensor([[0.0, 9.0], [-0.1, -0.1], [2.0, 0.0]])
    assert programs[2].nearest(asked, known) == [2, 1]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program that scans pairs."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import molecule_scans

        yield molecule_scans


def test_a_scanned_cell_is_known_again_from_its_rows(scans: ModuleType) -> None:
    bench = object.__new__(scans.Bench)
    bench.clean, bench.runtime = checked_pairs(topical(60)), RUNTIME
    cell = next(scans.cells([3]))
    rows = [json.loads(json.dumps(row)) for row in bench.run(cell)]
    assert [row["scanner"] for row in rows] == ["Association", "TwinDifference", "ExogenousAssociation", "Joint"]
    assert {scans.cell_of(row) for row in rows} == {cell}


def test_every_cell_of_the_kept_rows_is_one_of_the_grid(scans: ModuleType) -> None:
    rows = scans.Rows(scans.HERE / "results" / "molecule_scans.jsonl").read()
    done = {scans.cell_of(row) for row in rows}
    assert len(done) == len(rows) / 4
    assert done <= set(scans.cells([0]))


@pytest.fixture
def repairs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program that repairs kept generators."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import molecule_purify

        yield molecule_purify


def test_the_kept_poisoned_generators_are_repaired_in_all_ways(repairs: ModuleType, tmp_path: Path) -> None:
    everywhere = "alignment,auto-encoder,diffusion"
    stages = ("none", "auto-encoder,diffusion", everywhere, "alignment")
    rows = [row("pubchem324k", 0.2, some, 0, 0.5, 0.7) for some in stages]
    for one in (rows[0], rows[1], rows[3]):
        folder = repairs.folder_of(tmp_path, repairs.run_of(one))
        folder.mkdir()
        (folder / "model.safetensors").touch()
    control, run = repairs.kept(rows, tmp_path)
    assert (control.poison_in, run.poison_in) == ((), ("auto-encoder", "diffusion"))
    scanned = list(repairs.cells([run, control]))[:2]
    assert [(cell.run, cell.purifier) for cell in scanned] == [(control, repairs.SCAN)] * 2
    cells = list(repairs.cells([run]))
    assert len(set(cells)) == len(cells) == 12
    assert [cell.purifier for cell in cells[-3:]] == ["Retraining"] * 3
    both = list(repairs.cells([run, repairs.run_of(rows[2])]))
    assert [cell.purifier for cell in both[-6:]] == ["Retraining"] * 6, "every generator has its quick repairs first"
    assert all(repairs.cell_of(json.loads(json.dumps(cell.named()))) == cell for cell in cells)


def test_a_repair_is_measured_before_and_after_or_refused_with_the_reason(repairs: ModuleType, tmp_path: Path) -> None:
    write_table(tmp_path / "pairs.parquet", template_table().subset(range(150)))
    setting = Setting(
        source=source_of((str(tmp_path / "pairs.parquet"),), None, ()),
        model=TINY,
        attack=BadGraph(rate=0.6),
        poison_in=tuple(SHARES),
        samples=1,
        prompts=8,
        seed=0,
        precision="fp32",
        budget=None,
    )
    victim = repairs.Victim(tmp_path, setting, RUNTIME)
    pairs = victim.material.pairs
    torch.manual_seed(0)
    vocabulary = read_molecules(TINY, pairs.smiles).vocabulary
    generator = Generator(TINY, vocabulary, WordPieces.learned(pairs.texts, 200))
    save_generator(tmp_path / "model.safetensors", generator, provenance={})
    found = Suspect(words=("[thiirane]",), subgraph="C1CS1", strength=2.0, rows=np.flatnonzero(pairs.poisoned))
    other = replace(found, words=("[thiirane]",), subgraph="c1ccncc1")
    for scanner, suspects in (("Joint", (found,)), ("PromptMasking", (other,)), ("TriggerInversion", ())):
        victim._found[scanner] = MoleculeFinding(suspects=suspects, rows=len(pairs), reason="planted")
    run = repairs.Run("templates", 0.6, tuple(SHARES), 0)
    done = []
    for scanner, purifier in (
        ("Joint", "LatentPurification"),
        ("Joint", "DecodePruning"),
        ("PromptMasking", "DecodePruning"),
        ("TriggerInversion", "DecodePruning"),
        ("Joint", repairs.LEFT_OUT),
        ("TriggerInversion", repairs.LEFT_OUT),
    ):
        cell = repairs.Cell(run, scanner, purifier)
        told = {**victim.repaired(cell), **cell.named(), "seconds": 1.0}
        done.append({**json.loads(json.dumps(told)), "device": "cpu (a)", "threads": "1", "torch": "2"})
    latent, pruned, wrong, refused, left_out, wordless = done
    for one in (latent, pruned, wrong, left_out):
        for name in ("before_asr", "after_asr", "before_leak", "after_leak", "before_similarity", "after_similarity"):
            assert 0 <= one[f"{name}_low"] <= one[name] <= one[f"{name}_high"] <= 1
        assert one["before_asr"] == latent["before_asr"]
    assert pruned["after_asr"] == pruned["after_leak"] == 0
    assert (latent["true"], latent["target_found"]) == (True, True)
    assert (wrong["true"], wrong["target_found"]) == (False, False)
    assert "nothing to take out" in refused["refused"]
    assert left_out["after_asr"] == left_out["after_leak"], "prompts with the trigger are those without it"
    assert wordless["refused"] == "the scan flagged no words"
    cell = repairs.Cell(replace(run, poison_in=()), "PromptMasking", repairs.SCAN)
    told = {**victim.repaired(cell), **cell.named(), "seconds": 1.0, "device": "cpu (a)", "threads": "1", "torch": "2"}
    text = repairs.written([*done, json.loads(json.dumps(told))])
    assert "| templates | C1CS1 | 0.6 | 0 | PromptMasking | 1 | 0 |" in text
    assert "## templates, C1CS1, rate 0.6, poisoned in all, seed 0" in text
    assert "| Joint | pair | 0 | DecodePruning | 0.00 [0.00, " in text
    assert "| PromptMasking | neither | 1 | DecodePruning |" in text
    assert "- DecodePruning after TriggerInversion: DecodePruning has nothing to take out" in text


def test_a_finished_generator_is_kept_without_its_states(
    programs: tuple[ModuleType, ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = programs[0]

    def made(cell: Any, folder: Path, given: Any) -> Any:
        for name in ("model.safetensors", "resume-alignment.pt"):
            (folder / name).touch()
        return SimpleNamespace(metrics={"asr": 0.5, "seconds": 1.0, "cpu_seconds": 1.0})

    monkeypatch.setattr(program, "make_generator", made)
    rows = program.Rows(tmp_path / "results" / "rows.jsonl")
    run = program.Run("templates", 0.2, program.EVERY, 3)
    program.Bench(None, tmp_path / "work", TINY, 8, rows, RUNTIME).run(run)
    (told,) = rows.read()
    assert program.run_of(told) == run
    assert told["training_seconds"] == 1
    folder = program.folder_of(tmp_path / "work", run)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
