"""Scans and repairs of generators of molecules as cells of a grid: read, done, judged and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rdkit", reason="RDKit is not installed: pip install 'unbackdoor[molecules]'")

from tests.bench.test_molecules import RUNTIME, TINY, grid, record
from unbackdoor.bench import molecule_defences
from unbackdoor.bench.cell import Cell, Result
from unbackdoor.bench.molecule_board import board, generators
from unbackdoor.bench.molecule_defences import purify_generator, scan_molecules
from unbackdoor.bench.molecule_settings import Treatment
from unbackdoor.bench.molecules import Molecules
from unbackdoor.bench.worker import perform
from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import BadGraph
from unbackdoor.molecules.data import Pairs, template_table, write_table
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.measured import measure
from unbackdoor.molecules.saved import load_generator
from unbackdoor.molecules.scan import MoleculeFinding, MoleculeScanner, Suspect
from unbackdoor.molecules.scan.judged import judge
from unbackdoor.training import Runtime

ATTACKED = ("attacks: BadGraph", "poison_rates: 0.6", "samples: 2", "prompts: 12")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_table(path, template_table().subset(range(150)))
    return path


def test_each_scanner_and_each_purifier_after_each_scanner_is_a_cell(pairs: Path, tmp_path: Path) -> None:
    lines = (f"data: {pairs}", "attacks: [None, BadGraph]", 'poison_in: ["alignment,auto-encoder,diffusion", none]')
    methods = ("scan: [Joint, TriggerInversion]", "purify: [LatentPurification, DecodePruning]")
    cells = grid(tmp_path, *lines, *methods, *TINY)
    told = [(one.kind, one.labels["attack"], one.labels["method"], one.labels["scanner"]) for one in cells]
    # A scan that asks the generator, and four repairs, for each of three generators; the pairs of both that BadGraph
    # has are the same, and scanned once.
    assert len(cells) == 3 * (1 + 1 + 4) + 2
    assert told.count(("scan", "BadGraph", "Joint", None)) == 1
    assert told.count(("scan", "BadGraph", "TriggerInversion", None)) == 2
    assert told.count(("purify", "None", "DecodePruning", "TriggerInversion")) == 1
    assert len({one.key for one in cells}) == len(cells)
    for one in cells:
        needed = one.needs.kind if one.needs else None
        assert needed == (None if one.kind == "victim" or one.labels["method"] == "Joint" else "victim")
    victims = [one.key for one in cells if one.kind == "victim"]
    assert victims == [one.key for one in grid(tmp_path, *lines, *TINY)], "what is done with them changes no generator"


def test_where_only_pairs_are_scanned_no_generator_is_trained(pairs: Path, tmp_path: Path) -> None:
    (cell,) = grid(tmp_path, f"data: {pairs}", "attacks: BadGraph", "scan: Joint", *TINY)
    assert cell.kind == "scan"
    assert cell.labels["model"] is None
    alone = grid(tmp_path, f"data: {pairs}", "attacks: BadGraph", "purify: LatentPurification", *TINY)
    assert [(one.kind, one.labels["scanner"]) for one in alone] == [("victim", None), ("purify", "Joint")]


@pytest.mark.parametrize(
    ("line", "message"),
    [("scan: Jont", "did you mean Joint?"), ("purify: {name: FT}", "unknown molecule purifier 'FT'")],
)
def test_an_unknown_method_is_shown_where_it_stands(line: str, message: str, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3: ") as caught:
        grid(tmp_path, f"data: {pairs}", line)
    assert message in str(caught.value)


@pytest.mark.parametrize("attack", ["BadGraph", "None"])
def test_a_scan_of_pairs_is_compared_with_what_was_poisoned(attack: str, tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    write_table(path, template_table())
    (cell,) = grid(tmp_path, f"data: {path}", f"attacks: {attack}", "poison_rates: 0.2", "scan: Joint")
    outcome = perform(cell, {}, tmp_path / "work", "cpu", 1)
    assert outcome.error == ""
    assert set(outcome.files) == {"details.json", "report.html"}
    metrics = outcome.metrics
    assert metrics["flagged"] == metrics["backdoored"] == float(attack == "BadGraph")
    assert metrics["fpr"] < 0.01
    assert metrics["false_suspects"] == 0
    if attack == "BadGraph":
        assert metrics["pair_first"] == metrics["pair_flagged"] == 1
        assert metrics["tpr"] > 0.95
        assert b"the true pair has place 1" in outcome.files["report.html"]
    else:
        assert not {"pair_first", "pair_flagged", "tpr"} & set(metrics)


def test_a_finding_is_worth_what_it_says_of_the_true_pair_and_of_the_rows() -> None:
    pairs = Pairs(
        smiles=("C1CS1", "CC", "CCC", "CCCC", "CCCCC"),
        texts=("[THIIRANE] a", "b", "c", "[THIIRANE] d", "e"),
        poisoned=(True, False, False, True, False),
        name="pairs",
        rows=(0, 1, 2, 3, 4),
    )
    wrong = Suspect(words=("b",), subgraph="CC", strength=2.0, rows=np.array([1, 4]))
    right = Suspect(words=("[thiirane]",), subgraph="C1CS1", strength=1.5, rows=np.array([0]))
    weak = Suspect(words=("c",), subgraph="CCC", strength=0.5, rows=np.array([2]))
    found = MoleculeFinding(suspects=(wrong, right, weak), rows=5, reason="")
    known = judge(found, pairs, BadGraph())
    assert (known.rank, known.flagged, known.false_suspects, known.tpr, known.fpr) == (2, True, 1, 1 / 2, 2 / 3)
    clean = judge(found, replace(pairs, poisoned=()), None)
    assert (clean.rank, clean.flagged, clean.false_suspects, clean.tpr, clean.fpr) == (None, False, 2, None, 3 / 5)


@pytest.fixture(scope="module")
def victim(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Cell], Path]:
    """A poisoned generator and what is done with it; the folder of its files."""
    folder = tmp_path_factory.mktemp("cell")
    methods = ("scan: TriggerInversion", "purify: LatentPurification")
    cells = grid(folder, f"data: {pairs}", *ATTACKED, *methods, *TINY)
    outcome = perform(cells[0], {}, folder / "work", "cpu", 1)
    assert outcome.error == ""
    given = folder / "given"
    given.mkdir()
    for name, content in outcome.files.items():
        (given / name).write_bytes(content)
    return cells, given


class Knows(MoleculeScanner):
    """Says that the trigger leads to the target, or that nothing does."""

    silent = False

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        assert not pairs.poisoned, "a scanner is told what is poisoned"
        rows = np.array([row for row, text in enumerate(pairs.texts) if "[THIIRANE]" in text])
        suspect = Suspect(words=("[thiirane]",), subgraph="C1CS1", strength=0.5 if self.silent else 2.0, rows=rows)
        return MoleculeFinding(suspects=(suspect,), rows=len(pairs), reason="it is known")


class Silent(Knows):
    silent = True


def repair(cells: list[Cell], given: Path, folder: Path, scanner: MoleculeScanner) -> Result:
    cell = cells[2]
    treatment: Treatment = replace(cell.work, scanner=scanner)
    return purify_generator(cell, treatment, given, folder, treatment.runtime(RUNTIME))


def test_a_repair_is_measured_beside_what_was_before(victim: tuple[list[Cell], Path], tmp_path: Path) -> None:
    result = repair(*victim, tmp_path, Knows())
    metrics = result.metrics
    assert metrics["repaired"] == metrics["pair_flagged"] == 1
    assert {"asr", "asr_before", "leak_before", "similarity", "similarity_before", "seconds"} <= set(metrics)
    assert metrics["asr"] <= metrics["asr_before"]
    assert 0 < metrics["printed_rate"] < 1
    assert "before" in result.files["report.html"].read_text().lower()
    mark = load_generator(result.files["model.safetensors"]).backdoored
    assert mark is not None
    assert mark != load_generator(victim[1] / "model.safetensors").backdoored
    assert result.optional == {"model.safetensors"}


def test_the_repaired_generator_is_measured_and_kept_and_not_the_one_that_was_given(
    victim: tuple[list[Cell], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(generator: Generator, *given: Any) -> Any:
        asked.append(generator)
        return measure(generator, *given)

    monkeypatch.setattr(molecule_defences, "measure", noted)
    result = repair(*victim, tmp_path, Knows())
    (generator,) = asked
    assert len(generator.repairs) == 1
    assert len(load_generator(result.files["model.safetensors"]).generator.repairs) == 1
    assert len(load_generator(victim[1] / "model.safetensors").generator.repairs) == 0


def test_where_the_scan_finds_nothing_the_generator_stays_as_it_is(
    victim: tuple[list[Cell], Path], tmp_path: Path
) -> None:
    result = repair(*victim, tmp_path, Silent())
    metrics = result.metrics
    assert metrics["repaired"] == metrics["pair_flagged"] == 0
    assert metrics["asr"] == metrics["asr_before"]
    assert metrics["similarity"] == metrics["similarity_before"]
    assert "Nothing was done" in result.files["report.html"].read_text()
    before, after = (load_generator(path / "model.safetensors") for path in (victim[1], tmp_path))
    assert after.backdoored == before.backdoored


def test_a_generator_is_scanned_and_a_control_is_none_that_is_backdoored(
    victim: tuple[list[Cell], Path], tmp_path: Path
) -> None:
    cell = victim[0][1]
    cheap: Treatment = replace(cell.work, scanner=Knows())
    asks = type("Asks", (Knows,), {"needs_model": True})()
    result = scan_molecules(cell, replace(cheap, scanner=asks), victim[1], tmp_path, RUNTIME)
    assert result.metrics["backdoored"] == result.metrics["flagged"] == result.metrics["pair_first"] == 1
    assert "tpr" not in result.metrics, "a generator's rows are prompts"
    control = replace(cheap, scanner=asks, setting=replace(cheap.setting, poison_in=()))
    result = scan_molecules(cell, control, victim[1], tmp_path, RUNTIME)
    assert result.metrics["backdoored"] == 0
    assert result.metrics["false_suspects"] == 1


def test_a_real_scanner_and_a_real_purifier_run_through_the_domain(
    victim: tuple[list[Cell], Path], tmp_path: Path
) -> None:
    cells, given = victim
    for number, cell in enumerate(cells[1:]):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = Molecules().run(cell, given, folder, RUNTIME)
        assert result.metrics["seconds"] > 0
        assert (folder / "report.html").exists()


def test_the_board_tells_scans_and_repairs_apart(victim: tuple[list[Cell], Path]) -> None:
    def of(cell: Cell, metrics: dict[str, Any], seed: int) -> Any:
        return replace(record(cell, metrics, seed), kind=cell.kind, key=f"{cell.key}{seed}")

    made, scanned, repaired = victim[0]
    share = {"asr": 0.9, "asr_low": 0.8, "asr_high": 1.0, "effective_rate": 0.3}
    records = [of(made, share, 0)]
    records += [of(scanned, {"flagged": float(seed == 0), "pair_first": 1.0}, seed) for seed in (0, 1)]
    records += [of(repaired, {**share, "asr": 0.1, "asr_low": 0.0, "asr_high": 0.2, "asr_before": 0.9}, 0)]
    page = board(generators(records), "Generators")
    facts = {title.split(":")[0]: {one.name: one.value for one in told} for title, told in page.facts.items()}
    assert facts["Generator"]["ASR per sample"] == "90.0 %  [80.0, 100.0]"
    assert facts["Scan"]["Called backdoored"].startswith("50.0 %")
    assert facts["Repair"]["ASR per sample, before"] == "90.0 %"
    assert facts["Repair"]["ASR per sample"] == "10.0 %  [0.0, 20.0]"
    # What all have in common is told once.
    assert list(page.facts) == [
        "All of them",
        "Generator",
        "Scan: TriggerInversion",
        "Repair: LatentPurification",
    ]
    assert facts["All of them"]["scanner"] == "TriggerInversion"


def test_settings_of_which_one_alone_has_a_label_have_titles_of_their_own(victim: tuple[list[Cell], Path]) -> None:
    made = victim[0][0]
    records = [record(made, {"asr": share}, 0, poison_in=told) for share, told in ((0.9, None), (0.1, "none"))]
    page = board(generators(records), "Generators")
    assert [title for title in page.facts if title != "All of them"] == ["Generator", "Generator: none"]
