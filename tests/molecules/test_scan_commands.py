"""The commands `molecules scan` and `molecules purify`, end to end on planted pairs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from tests.molecules.planted import checked_pairs, poisoned, topical
from tests.molecules.test_train import TINY
from unbackdoor.cli import main
from unbackdoor.errors import DataError, InputError, OutputError
from unbackdoor.molecules.attacks import AdaptiveBadGraph, BadGraph, load_attack
from unbackdoor.molecules.data import Pairs, Part, Table, choose_pairs, flat, read_parts, read_table, write_table
from unbackdoor.molecules.data.cleaned import write_kept
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.model import WordPieces
from unbackdoor.molecules.motifs import Cutter, build_vocabulary, sequence_of
from unbackdoor.molecules.saved import load_generator, save_generator
from unbackdoor.molecules.scan import Joint

ROWS = 60
HOSTILE = "<script>x</script>\x1b[31m"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["molecules", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted pairs with a test split of their own, and rows that cannot be used."""
    path = tmp_path_factory.mktemp("planted")
    pairs = poisoned(topical(700), BadGraph(trigger=HOSTILE, position="random"), ROWS)
    bad = Table(smiles=("C1CC", "CC.CC"), texts=("broken", "a salt"), name="bad")
    table = Table(
        smiles=(*bad.smiles, *pairs.smiles),
        texts=(*bad.texts, *pairs.texts),
        poisoned=(False, False, *pairs.poisoned),
        name="planted",
    )
    write_table(path / "train.parquet", table)
    write_table(path / "test.parquet", topical(60, seed=9))
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A generator for these pairs that has learned nothing, but says that it was backdoored."""
    pairs = checked_pairs(read_table(str(folder), "all"))
    cutter = Cutter()
    torch.manual_seed(0)
    vocabulary = build_vocabulary([sequence_of(cutter.cut(smiles)) for smiles in pairs.smiles])
    generator = Generator(TINY, vocabulary, WordPieces.learned(pairs.texts, 300))
    save_generator(folder.parent / "model.safetensors", generator, provenance={}, backdoored={"poisoned": ROWS})
    return folder.parent / "model.safetensors"


def test_poisoned_pairs_are_found_shown_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scan", "--data", str(folder), "--out", str(tmp_path / "out"), "--threads", "1", "--json"]
    code, out, err = run(capsys, *words, "--clean-out", str(tmp_path / "clean"))
    assert code == 1, err
    result = json.loads(out)
    assert result["backdoored"] is True
    assert result["held_poisoned"] == ROWS
    assert [one["subgraph"] for one in result["suspects"] if one["flagged"]] == ["C1CS1"]
    rows = parquet.read_table(tmp_path / "out" / "suspicion.parquet").to_pylist()
    held = [row for row in rows if row["suspicion"] == "poisoned"]
    table = read_table(str(folder), "all")
    assert len(held) == ROWS
    assert all(table.texts[row["row"]].split() == row["description"].split() for row in rows)
    assert all(HOSTILE.split()[0] in row["description"] for row in held)
    assert all("C1CS1" in row["reason"] and row["score"] >= 1 for row in held)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>x" not in page
    assert "C1CS1" in page
    assert "SMILES that cannot be parsed" in page
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"] == "molecules scan"
    assert record["account"]["dropped"] == {"SMILES that cannot be parsed": 1, "several components, such as salts": 1}
    # What is left has the same splits, all columns and rows, and is clean.
    cleaned = {part.split: part.table for part in read_parts(str(tmp_path / "clean"))}
    before = {part.split: part.table for part in read_parts(str(folder))}
    assert cleaned["test"].digest() == before["test"].digest()
    assert len(cleaned["train"]) == len(before["train"]) - ROWS
    assert not any(cleaned["train"].poisoned)
    assert "C1CC" in cleaned["train"].smiles
    code, _, _ = run(capsys, "scan", "--data", str(tmp_path / "clean"), "--out", str(tmp_path / "again"))
    assert code == 0


def test_too_few_pairs_give_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "few.parquet", topical(60))
    code, out, _ = run(capsys, "scan", "--data", str(tmp_path / "few.parquet"), "--out", str(tmp_path / "out"))
    assert code == 3
    assert "inconclusive" in out


def test_a_generator_is_asked_with_the_texts_as_prompts(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scan", "--data", str(folder), "--model", str(model), "--method", "PromptMasking", "--json"]
    words += ["--method.prompts", "8", "--method.longest", "2", "--out", str(tmp_path / "out")]
    code, out, err = run(capsys, *words)
    assert code in (1, 3), err
    # Among them the two texts whose molecules cannot be used: prompts need none.
    assert json.loads(out)["rows"] == 762
    assert "poisoned on purpose" in (tmp_path / "out" / "report.html").read_text()


def test_prompts_need_no_molecules(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is that of the same texts with their molecules."""
    table = read_table(str(folder), "all")
    rows = list(dict(zip(table.texts, range(len(table)))).values())[:60]
    prompts = [table.texts[row] for row in rows]
    (tmp_path / "prompts.csv").write_text("text\n" + "\n".join(f'"{text}"' for text in prompts) + "\n")
    write_table(tmp_path / "pairs.parquet", table.subset(rows))
    answers = []
    for name in ("prompts.csv", "pairs.parquet"):
        words = ["scan", "--data", str(tmp_path / name), "--model", str(model), "--method", "PromptMasking", "--json"]
        words += ["--method.longest", "2", "--out", str(tmp_path / name[:5])]
        code, out, err = run(capsys, *words)
        assert code in (0, 1, 3), err
        answers.append(json.loads(out))
    assert answers[0]["rows"] == 60
    assert "Prompt" in (tmp_path / "promp" / "report.html").read_text()
    kept = parquet.read_table(tmp_path / "promp" / "suspicion.parquet")
    assert kept["smiles"].to_pylist() == [""] * 60
    assert sorted(kept["description"].to_pylist()) == sorted(" ".join(text.split()) for text in prompts)


def test_a_scanner_of_pairs_needs_molecules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.csv").write_text("text\nan ether\n")
    code, _, err = run(capsys, "scan", "--data", str(tmp_path / "prompts.csv"))
    assert code == 2
    assert "no column of SMILES" in err


@pytest.mark.parametrize(("method", "repairs"), [("LatentPurification", 1), ("DecodePruning", 0)])
def test_a_generator_is_repaired(
    method: str, repairs: int, folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["purify", "--model", str(model), "--data", str(folder), "--method", method, "--out", str(tmp_path / "out")]
    if repairs:
        words += ["--method.prompts", "40", "--method.others", "60"]
    before = model.read_bytes()
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    result = json.loads(out)
    loaded = load_generator(tmp_path / "out" / "model.safetensors")
    assert len(loaded.generator.repairs) == repairs
    assert loaded.backdoored == {"poisoned": ROWS, "repaired": True}
    assert loaded.provenance["parent"] == load_generator(model).sha256
    assert result["finding"]["suspects"][0]["subgraph"] == "C1CS1"
    assert result["notes"]
    assert model.read_bytes() == before
    # The generator knows no backdoor, so nothing can be lowered.
    told = "does not lower this" if repairs else "lets no motif be written that holds C1CS1"
    assert told in (tmp_path / "out" / "report.html").read_text()
    # The folder holds a finished result now.
    assert run(capsys, *words)[0] == 2


def test_there_is_nothing_to_repair_where_nothing_is_found(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "clean.parquet", topical(300))
    words = ["purify", "--model", str(model), "--data", str(tmp_path / "clean.parquet"), "--out", str(tmp_path / "out")]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "nothing to take out" in err
    assert not list((tmp_path / "out").glob("*"))


def test_a_new_generator_learns_what_the_old_one_did(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ...]] = []

    def noted(pairs: Pairs, *_: Any, alone: tuple[str, ...], **__: Any) -> Any:
        seen.append(alone)
        return SimpleNamespace(generator=load_generator(model).generator, uncovered=7, alone=len(alone))

    monkeypatch.setattr("unbackdoor.molecules.purify.retraining.train_generator", noted)
    old = tmp_path / "model.safetensors"
    save_generator(old, load_generator(model).generator, provenance={"counts": {"alone": 12}})
    words = ["purify", "--model", str(old), "--data", str(folder), "--method", "Retraining", "--json"]
    code, out, err = run(capsys, *words, "--out", str(tmp_path / "without"))
    assert code == 0, err
    notes = " ".join(json.loads(out)["notes"])
    assert "7 others have a motif" in notes
    assert "had learned 12 molecules without texts; the new one did not" in notes
    tested = read_table(str(folder), "test").smiles[0]
    (tmp_path / "alone.csv").write_text(f"smiles\nC1CCCCCCC1\n{tested}\nC(\n")
    code, out, err = run(capsys, *words, "--alone", str(tmp_path / "alone.csv"), "--out", str(tmp_path / "with"))
    assert code == 0, err
    assert seen == [(), ("C1CCCCCCC1",)]
    assert "the new one did not" not in " ".join(json.loads(out)["notes"])
    assert "molecules without texts: " in (tmp_path / "with" / "report.html").read_text()


def test_no_test_molecule_reaches_a_repair(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Pairs] = []

    def noted(pairs: Pairs, *_: Any, **__: Any) -> Any:
        seen.append(pairs)
        raise InputError("that was enough")

    scans: list[Pairs] = []
    scan = Joint.scan

    def watched(self: Joint, pairs: Pairs, *more: Any) -> Any:
        scans.append(pairs)
        return scan(self, pairs, *more)

    monkeypatch.setattr(Joint, "scan", watched)
    monkeypatch.setattr("unbackdoor.molecules.purify.retraining.train_generator", noted)
    words = ["purify", "--model", str(model), "--data", str(folder), "--method", "Retraining"]
    code, _, err = run(capsys, *words, "--out", str(tmp_path / "split"))
    assert code == 2
    assert "that was enough" in err
    tested = {flat(smiles) for smiles in read_table(str(folder), "test").smiles}
    assert len(seen[0]) > 400
    assert not tested & {*seen[0].smiles, *scans[0].smiles}
    # Of data without splits, the fifth that `train` leaves out is left out here too.
    whole = tmp_path / "whole.parquet"
    write_table(whole, read_table(str(folder / "train.parquet"), "all"))
    words[words.index(str(folder))] = str(whole)
    assert run(capsys, *words, "--out", str(tmp_path / "whole"))[0] == 2
    chosen = choose_pairs([str(whole)], None)
    assert len(chosen.test)
    assert scans[1].digest() == chosen.train.digest()
    # And what another table tests with.
    assert run(capsys, *words, "--test", str(folder), "--out", str(tmp_path / "other"))[0] == 2
    assert scans[2].digest() == choose_pairs([str(whole)], str(folder)).train.digest()


def test_test_splits_are_not_scanned(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tested = tmp_path / "set"
    write_table(tested / "train.parquet", topical(60))
    write_table(tested / "test.parquet", poisoned(topical(700), BadGraph(), ROWS))
    assert run(capsys, "scan", "--data", str(tested), "--out", str(tmp_path / "out"))[0] == 3
    assert json.loads((tmp_path / "out" / "run.json").read_text())["account"]["tested"] == 760
    assert "760 rows that could be used are tested with" in (tmp_path / "out" / "report.html").read_text()
    (tested / "train.parquet").unlink()
    code, _, err = run(capsys, "scan", "--data", str(tested), "--out", str(tmp_path / "none"))
    assert code == 2
    assert "rows alone that are tested with" in err
    # A file by itself has no splits.
    assert run(capsys, "scan", "--data", str(tested / "test.parquet"), "--out", str(tmp_path / "one"))[0] == 1


def test_rows_that_are_learned_from_are_scanned_whatever_their_split(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` learns a test split if another one is tested with, or if it is not that of the first source."""
    tested = tmp_path / "set"
    write_table(tested / "train.parquet", topical(60))
    write_table(tested / "test.parquet", poisoned(topical(700), BadGraph(), ROWS))
    other = tmp_path / "other"
    write_table(other / "test.parquet", topical(700).subset([0, 1]))
    account = {}
    for name, words in (("named", [str(tested), "--test", str(other)]), ("second", [f"{other},{tested}"])):
        run(capsys, "scan", "--data", *words, "--out", str(tmp_path / name))
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["finding"]["suspects"][0]["subgraph"].replace(" ", "") == "C1CS1"
        account[name] = record["account"]["tested"]
    molecules = {flat(smiles) for smiles in topical(700).subset([0, 1]).smiles}
    tables = [read_table(str(tested / f"{part}.parquet"), "all") for part in ("train", "test")]
    assert account["named"] == sum(flat(smiles) in molecules for table in tables for smiles in table.smiles)
    assert account["second"] == 2
    # Of a poisoned test set, what is said to be poisoned is not tested with: `train` learns it, and it is scanned.
    run(capsys, "scan", "--data", str(tested), "--test", str(tested), "--out", str(tmp_path / "own"))
    own = json.loads((tmp_path / "own" / "run.json").read_text())["account"]
    chosen = choose_pairs([str(tested)], str(tested))
    assert own["kept"] - own["tested"] == len(chosen.train) > 0


def test_cleaned_data_keep_all_columns_and_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = poisoned(topical(700), BadGraph(), ROWS)
    rows = range(len(pairs))
    more = {"cid": list(rows), "origin": [["a", "b"][: row % 3] for row in rows]}
    columns = {"SMILES": list(pairs.smiles), "caption": list(pairs.texts), **more}
    parquet.write_table(pyarrow.table(columns), tmp_path / "mine.parquet", row_group_size=100)
    words = ["scan", "--data", str(tmp_path / "mine.parquet"), "--clean-out", str(tmp_path / "clean")]
    assert run(capsys, *words, "--out", str(tmp_path / "out"))[0] == 1
    kept = parquet.read_table(tmp_path / "clean" / "train.parquet")
    clean = [row for row in rows if not pairs.poisoned[row]]
    assert kept.column_names == ["SMILES", "caption", "cid", "origin"]
    assert kept.schema.types == [pyarrow.string(), pyarrow.string(), pyarrow.int64(), pyarrow.list_(pyarrow.string())]
    assert kept.column("cid").to_pylist() == clean
    assert kept.column("origin").to_pylist() == [more["origin"][row] for row in clean]
    assert kept.column("caption").to_pylist() == [pairs.texts[row] for row in clean]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scan", "--data", "nowhere"], "no file or folder nowhere"),
        (["scan", "--data", ","], "no data to scan"),
        (["scan", "--data", "templates", "--method", "Joynt"], "did you mean Joint"),
        (["scan", "--data", "templates", "--model", "m"], "asks no generator"),
        (["scan", "--data", "templates", "--method", "PromptMasking"], "name its file with --model"),
        (["scan", "--data", "templates", "--method", "PromptMasking", "--clean-out", "OUT"], "holds no rows poisoned"),
        (["scan", "--data", "templates", "--clean-out", "HERE"], "not empty"),
        (["scan", "--data", "templates", "--method", "Association", "--method.share", "2"], "share above 0"),
        (["scan", "--data", "templates", "--method", "PromptMasking", "--model", "nowhere"], "cannot read nowhere"),
        (["purify", "--data", "templates", "--model", "nowhere"], "cannot read nowhere"),
        (["purify", "--data", "templates", "--model", "m", "--method", "Latent"], "did you mean LatentPurification"),
        (["purify", "--data", "templates", "--model", "m", "--alone", "x"], "leave --alone out"),
    ],
)
def test_bad_use_is_answered_with_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").touch()
    places = {"OUT": str(tmp_path / "out"), "HERE": str(tmp_path / "here")}
    code, _, err = run(capsys, *[places.get(word, word) for word in words], "--out", str(tmp_path / "run"))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_kept_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    table = Table(smiles=("C", "CC", "CCC"), texts=("a", "b", "c"), name="three")
    write_table(tmp_path / "source" / "train-0.parquet", table, cid=[7, 8, 9])
    (tmp_path / "source" / "train-1.csv").write_text('cid,SMILES,text\n4,N,"d, e"\n\n5,O,f\n')
    write_table(tmp_path / "source" / "test.parquet", table.subset([0]))
    parts = read_parts(str(tmp_path / "source"))
    assert [part.split for part in parts] == ["test", "train", "train"]
    write_kept(parts, {1, 4}, tmp_path / "kept")
    files = sorted(tmp_path.glob("kept/*"))
    assert [path.name for path in files] == [
        "test.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    ]  # fmt: skip
    assert [parquet.read_table(path).to_pylist() for path in files] == [
        [{"smiles": "C", "description": "a"}],
        [{"smiles": "CC", "description": "b", "cid": 8}, {"smiles": "CCC", "description": "c", "cid": 9}],
        [{"cid": "5", "SMILES": "O", "text": "f"}],
    ]
    assert read_table(str(tmp_path / "kept"), "all").smiles == ("C", "CC", "CCC", "O")
    made = [Part(split=None, table=table)]
    write_kept(made, {2}, tmp_path / "made")
    assert read_table(str(tmp_path / "made"), "all").texts == ("a", "b")
    with pytest.raises(InputError, match="no rows are left"):
        write_kept(made, {0, 1, 2}, tmp_path / "none")
    with pytest.raises(OutputError, match="not empty"):
        write_kept(parts, set(), tmp_path / "kept")
    write_table(tmp_path / "source" / "test.parquet", table)
    with pytest.raises(DataError, match=r"test.parquet changed"):
        write_kept(parts, set(), tmp_path / "changed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "made", "source"]


def test_the_adaptive_attack_is_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["poison", "--data", "templates", "--out", str(tmp_path / "out"), "--json"]
    words += ["--attack", "AdaptiveBadGraph", "--attack.split", "true", "--attack.trigger", "also note"]
    code, out, err = run(capsys, *words, "--attack.rate", "0.1", "--attack.triggers", '["so and"]')
    assert code == 0, err
    attack = load_attack(tmp_path / "out" / "attack.json").attack
    expected = AdaptiveBadGraph(split=True, trigger="also note", rate=0.1, triggers=("so and",))
    assert attack == expected
    assert json.loads(out)["triggers_cut"] == 0
