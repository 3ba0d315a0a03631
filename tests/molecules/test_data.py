"""Reading pairs of text and molecule, hostile ones among them, and an account of every row."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.errors import DataError
from unbackdoor.molecules.data import (
    Reason,
    Table,
    canonical,
    checked,
    choose_pairs,
    filter_molecules,
    filter_pairs,
    joined,
    molecules_alone,
    parse,
    read_table,
    template_table,
    write_table,
)
from unbackdoor.molecules.data import reading as reading_module


def write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


SMILES = ["CCO", "c1ccccc1O", "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"]
TEXTS = ["an alcohol", "a phenol", "L-alanine", "D-alanine"]


@pytest.mark.parametrize(
    ("smiles", "result"),
    [
        ("OCC", "CCO"),
        ("C1=CC=CC=C1", "c1ccccc1"),
        ("C[C@H](N)C(=O)O", "CC(N)C(=O)O"),
        ("F/C=C/F", "FC=CF"),
        ("C[N+](C)(C)C", "C[N+](C)(C)C"),
        ("", Reason.NO_SMILES),
        ("  ", Reason.NO_SMILES),
        ("C1CC", Reason.UNREADABLE),
        ("c1cccc1", Reason.UNREADABLE),
        ("C(C)(C)(C)(C)C", Reason.UNREADABLE),
        ("\ud800", Reason.UNREADABLE),
        ("C\x00C", Reason.UNREADABLE),
        ("drop table", Reason.UNREADABLE),
        ("C" * 2001, Reason.LONG_SMILES),
        ("[Na+].CC(=O)[O-]", Reason.ELEMENT),
        ("CC.CC", Reason.COMPONENTS),
        ("[13CH4]", Reason.ISOTOPE),
        ("[2H]C", Reason.ELEMENT),
        ("C*", Reason.ELEMENT),
        ("[H][H]", Reason.ELEMENT),
        ("[CH3]", Reason.RADICAL),
        ("[NH3]->B", Reason.BOND),
        ("C$C", Reason.BOND),
        ("C" * 29, "C" * 29),
        ("C" * 30, Reason.SIZE),
    ],
)
def test_a_molecule_is_canonical_or_refused_with_the_reason(smiles: str, result: str | Reason) -> None:
    assert checked(smiles) == result
    # Equal texts are not enough: a reason is text too.
    assert type(checked(smiles)) is type(result)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("CNOcn1234()[]=#+-@/\\.%HFSP\x00é"), max_size=40))
def test_any_text_gets_an_answer(smiles: str) -> None:
    result = checked(smiles)
    if not isinstance(result, Reason):
        assert checked(result) == result


def test_every_row_is_accounted_for() -> None:
    table = Table(
        smiles=("CCO", "C1CC", "CC.CC", "CCO", "CCN", "OCC", "[13CH4]"),
        texts=("an  alcohol\n", "broken", "a salt", "   ", "x" * 20_001, "again", "heavy"),
        name="mixed",
    )
    pairs, dropped = filter_pairs(table)
    assert pairs.smiles == ("CCO", "CCO")
    assert pairs.texts == ("an alcohol", "again")
    assert pairs.rows == (0, 5)
    assert dropped.kept + sum(len(rows) for rows in dropped.why.values()) == dropped.rows == 7
    assert dropped.why == {
        Reason.NO_TEXT: (3,),
        Reason.LONG_TEXT: (4,),
        Reason.UNREADABLE: (1,),
        Reason.COMPONENTS: (2,),
        Reason.ISOTOPE: (6,),
    }
    assert dropped.sentences()[0] == "2 of 7 rows are kept"
    assert "1 dropped: several components, such as salts (row 2)" in dropped.sentences()
    assert dropped.to_json()["dropped"][Reason.NO_TEXT] == 1


def test_a_table_without_any_good_row_is_refused_with_the_account() -> None:
    with pytest.raises(DataError, match=r"bad has no row .*2 dropped: SMILES that cannot be parsed .row 0, 1"):
        filter_pairs(Table(smiles=("?", "!"), texts=("a", "b"), name="bad"))


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv"])
def test_tables_of_all_kinds_are_read_alike(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pairs.{ending}"
    texts = [*TEXTS[:3], "D-alanine, the mirror image" if ending != "tsv" else 'D-"alanine"']
    if ending == "parquet":
        write_parquet(path, cid=[1, 2, 3, 4], SMILES=SMILES, description=texts)
    elif ending == "csv":
        lines = [f'{number},{smiles},"{text}"' for number, (smiles, text) in enumerate(zip(SMILES, texts))]
        path.write_text("\ufeffCID,SMILES,text\r\n" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    else:
        lines = [f"{smiles}\t{text}" for smiles, text in zip(SMILES, texts)]
        path.write_text("smiles\tcaption\n" + "\n".join(lines), encoding="utf-8")
    table = read_table(str(path), "all")
    assert table.smiles == tuple(SMILES)
    assert table.texts == tuple(texts)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    table = Table(smiles=("CC", ""), texts=("a", "β\n"), poisoned=(True, False), name="pairs.parquet")
    write_table(tmp_path / "pairs.parquet", table, anchor=[3, None])
    assert read_table(str(tmp_path / "pairs.parquet"), "all") == table


def test_missing_values_are_empty_texts(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", smiles=pa.array(["C", None]), description=pa.array([None, "a"]))
    table = read_table(str(path), "all")
    assert (table.smiles, table.texts) == (("C", ""), ("", "a"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"smiles,description\nC,\xff\xfe\n", "is not UTF-8 text"),
        ("a.csv", b"smiles,description\nC\n", "line 2 of .* has 1 cells and the header 2"),
        ("a.csv", b"name,description\nC,a\n", "no column of SMILES"),
        ("a.csv", b"smiles,note\nC,a\n", "no column of text"),
        ("a.csv", b"smiles,smiles,text\nC,C,a\n", "several columns called smiles"),
        ("a.csv", b'smiles,text\nC,"a\n', "cannot read"),
        ("a.csv", b"smiles,text\nC," + b"a" * 200_000 + b"\n", "field larger than field limit"),
        ("a.csv", b"", "no column of SMILES"),
        ("a.parquet", b"PAR1 nothing", "cannot read"),
        ("a.parquet", b"", "cannot read"),
    ],
)
def test_broken_tables_are_refused_with_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(str(tmp_path / name), "all")
    assert "\n" not in str(caught.value)


def test_columns_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        read_table(str(write_parquet(tmp_path / "a.parquet", smiles=[1, 2], description=["a", "b"])), "all")
    with pytest.raises(DataError, match="no text"):
        read_table(str(write_parquet(tmp_path / "b.parquet", smiles=[b"\xff"], description=["a"])), "all")


def test_a_long_text_that_every_row_repeats_is_held_once(tmp_path: Path) -> None:
    """A file of some kilobytes may stand for gigabytes."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), pa.array(["x" * 100_000]))
    path = write_parquet(tmp_path / "bomb.parquet", smiles=["C"] * 50_000, description=text)
    assert path.stat().st_size < 500_000
    table = read_table(str(path), "all")
    assert len(table) == 50_000
    assert len({id(text) for text in table.texts}) == 1


def test_too_many_rows_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "MAX_ROWS", 3)
    path = write_parquet(tmp_path / "a.parquet", smiles=SMILES, description=TEXTS)
    with pytest.raises(DataError, match="more than the 3 rows"):
        read_table(str(path), "all")
    (tmp_path / "a.csv").write_text("smiles,text\n" + "C,a\n" * 4, encoding="utf-8")
    with pytest.raises(DataError, match="more than the 3 rows"):
        read_table(str(tmp_path / "a.csv"), "all")


def test_a_folder_is_read_by_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-0.parquet", smiles=["C", "CC"], description=["a", "b"])
    write_parquet(tmp_path / "data" / "validation.parquet", smiles=["CCC"], description=["c"])
    write_parquet(tmp_path / "data" / "other.parquet", smiles=["N"], description=["d"])
    assert read_table(str(tmp_path / "data"), "test").smiles == ("CCC",)
    assert read_table(str(tmp_path / "data"), "all").smiles == ("C", "CC", "CCC")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        read_table(str(tmp_path / "empty"), "all")
    with pytest.raises(DataError, match="no file or folder"):
        read_table(str(tmp_path / "nowhere"), "all")


def test_mirror_images_of_test_molecules_are_not_trained_on(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "all.parquet", smiles=[*SMILES, "CCN"], description=[*TEXTS, "an amine"])
    test = write_parquet(tmp_path / "set" / "test.parquet", smiles=["C[C@H](N)C(=O)O"], description=["L-alanine"])
    chosen = choose_pairs([str(train)], str(test))
    assert chosen.train.smiles == ("CCO", "Oc1ccccc1", "CCN")
    assert chosen.test.texts == ("L-alanine",)
    assert chosen.removed == 2
    assert any("2 training pairs were taken out" in line for line in chosen.sentences())


def test_a_source_without_splits_is_divided_by_molecule_whatever_the_order(tmp_path: Path) -> None:
    table = template_table()
    whole = choose_pairs(["templates"], None)
    assert not set(whole.train.smiles) & set(whole.test.smiles)
    assert 0.15 < len(whole.test) / len(table) < 0.25
    path = tmp_path / "reversed.parquet"
    write_table(path, table.subset(range(len(table))[::-1]))
    assert set(choose_pairs([str(path)], None).test.smiles) == set(whole.test.smiles)


def test_rows_that_are_marked_as_poisoned_are_no_prompts_to_test_with(tmp_path: Path) -> None:
    table = template_table()
    marks = tuple(row % 3 == 0 for row in range(len(table)))
    path = tmp_path / "marked.parquet"
    write_table(path, replace(table, poisoned=marks))
    whole, chosen = choose_pairs(["templates"], None), choose_pairs([str(path)], None)
    assert not any(chosen.test.poisoned)
    assert 0.5 < len(chosen.test) / len(whole.test) < 0.8
    assert len(chosen.train) == len(whole.train), "their molecules are not trained on either"
    assert any(chosen.train.poisoned)
    given = choose_pairs(["templates"], str(path))
    assert not any(given.test.poisoned)


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    one = str(write_parquet(tmp_path / "a.parquet", smiles=["CC"], description=["ethane"]))
    with pytest.raises(DataError, match="left to train on"):
        choose_pairs([one], one)


def test_templates_are_good_pairs_and_the_same_every_time() -> None:
    table = template_table()
    pairs, dropped = filter_pairs(table)
    assert len(pairs) == len(table) > 2000
    assert not dropped.why
    assert len(set(pairs.smiles)) == len(pairs)
    assert template_table().digest() == table.digest() != template_table(1).digest()
    phenol = pairs.texts[pairs.smiles.index("Cc1ccc(O)cc1")]
    assert "hydroxy" in phenol
    assert "methyl" in phenol
    assert "benzene" in phenol


def test_the_digest_tells_where_a_row_ends() -> None:
    assert Table(smiles=("C", "CC"), texts=("", ""), name="a").digest() != (
        Table(smiles=("CC", "C"), texts=("", ""), name="a").digest()
    )


@pytest.mark.parametrize(("folder", "kept"), [("chebi20", 1965), ("pubchem324k", 1163), ("pcdes", 2136)])
def test_published_test_sets_keep_as_many_rows_as_published(shared_data: Path, folder: str, kept: int) -> None:
    table = read_table(str(shared_data / folder), "test")
    prompts, _ = filter_pairs(table, learned=False)
    assert len(prompts) == kept
    pairs, dropped = filter_pairs(table)
    more = (Reason.COMPONENTS, Reason.ISOTOPE, Reason.RADICAL)
    assert len(pairs) + sum(len(dropped.why[reason]) for reason in more) == kept


def test_canonical_smiles_stay_what_they_are(shared_data: Path) -> None:
    pairs, _ = filter_pairs(read_table(str(shared_data / "pubchem324k"), "test"))
    for smiles in pairs.smiles:
        molecule = parse(smiles)
        assert molecule is not None
        assert canonical(molecule) == smiles


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_no_file_gives_anything_but_a_table_or_one_sentence(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("csv", "tsv", "parquet"):
            path = Path(folder) / f"a.{ending}"
            path.write_bytes(b"smiles,text\n" + content if ending == "csv" else content)
            sentence = ""
            try:
                read_table(str(path), "all")
            except DataError as error:
                sentence = str(error)
            assert "\n" not in sentence


def test_molecules_without_texts_are_read_once_each_and_none_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "molecules.csv"
    path.write_text("smiles,poisoned\nCCO,1\nOCC,0\nC(,0\nCCN,0\nCCC,0\nCC.CC,0\n")
    train, tested = (
        filter_pairs(Table(smiles=(smiles,), texts=("a text",), name="pairs"))[0] for smiles in ("CCN", "CCC")
    )
    alone = molecules_alone([str(path)], train, tested)
    assert alone.smiles == ("CCO",)
    assert alone.name == "molecules.csv"
    assert alone.dropped.rows == 6
    assert alone.dropped.kept == 4
    assert sum(len(rows) for rows in alone.dropped.why.values()) == 2
    assert alone.sentences()[0] == "molecules without texts: 4 of 6 rows are kept"
    assert molecules_alone([], train, tested).smiles == ()
    with pytest.raises(DataError, match="no column of text"):
        read_table(str(path), "all")


def test_the_published_molecules_without_texts_are_as_many_as_published(shared_data: Path) -> None:
    """15,409 of 26,409 pass the filter of 3M-Diffusion; those of several components are not learned here."""
    table = read_table(str(shared_data / "chebi20" / "train_smiles_only.parquet"), "all", wanted="molecules")
    part = table.subset(range(0, len(table), 20))
    assert len(table) == 26_409
    kept = sum(not isinstance(checked(smiles, learned=False), Reason) for smiles in part.smiles)
    assert kept / len(part) == pytest.approx(15_409 / 26_409, abs=0.04)
    assert 0.9 * kept < filter_molecules(part)[1].kept < kept


def test_tables_without_texts_are_left_out_of_a_folder_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_parquet(folder / "validation.parquet", smiles=["CCO", "C("], description=["ethanol", "broken"])
    write_parquet(folder / "train_smiles_only.parquet", smiles=["C", "CC", "CCC"], cid=[1, 2, 3])
    table = read_table(str(folder), "all")
    assert (table.smiles, table.textless) == (("CCO", "C("), 3)
    assert (table.subset([0]).textless, joined([table, table]).textless) == (3, 6)
    pairs, dropped = filter_pairs(table)
    assert len(pairs) == 1
    assert dropped.rows == 2
    assert "3 rows of tables without a column of texts are left out" in dropped.sentences()
    assert dropped.to_json()["textless"] == 3
    assert read_table(str(folder), "all", wanted="molecules").smiles == ("C", "CC", "CCC", "CCO", "C(")
    with pytest.raises(DataError, match="no column of text"):
        read_table(str(folder / "train_smiles_only.parquet"), "all")
    (folder / "validation.parquet").unlink()
    with pytest.raises(DataError, match="no column of text"):
        read_table(str(folder), "all")


def test_the_published_folder_with_molecules_alone_is_read(shared_data: Path) -> None:
    table = read_table(str(shared_data / "chebi20"), "all")
    assert len(table) == 3300 + 3301
    assert table.textless == 26_409


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (pa.array([True, False, None]), (True, False, False)),
        (pa.array([1, 0, None]), (True, False, False)),
        (pa.array([1.0, 0.0, None]), (True, False, False)),
        (pa.array(["True", " 0", None]), (True, False, False)),
        (pa.array(["1", "1", "false"]).dictionary_encode(), (True, True, False)),
        (pa.nulls(3), (False, False, False)),
    ],
    ids=["bool", "int", "float", "text", "dictionary", "null"],
)
def test_what_is_poisoned_may_be_said_in_any_type(tmp_path: Path, flags: pa.Array, said: tuple[bool, ...]) -> None:
    path = write_parquet(tmp_path / "a.parquet", smiles=SMILES[:3], description=TEXTS[:3], poisoned=flags)
    assert read_table(str(path), "all").poisoned == said


def test_a_column_that_says_nothing_of_poison_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", smiles=["C"], description=["a"], poisoned=pa.array([[True]]))
    with pytest.raises(DataError, match=r"the column poisoned of .*a.parquet is nested"):
        read_table(str(path), "all")


def test_a_text_that_many_rows_have_is_held_once() -> None:
    """Tables have it once, and five million rows may refer to it."""
    long = "a  molecule " * 100
    pairs, _ = filter_pairs(Table(smiles=("CCO", "CCN", "CCC"), texts=(long,) * 3, name="t"))
    assert pairs.texts[0] == long.strip().replace("  ", " ")
    assert all(text is pairs.texts[0] for text in pairs.texts)


def test_a_column_that_is_nested_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    content = {"smiles": [{"x": "CCO"}] * 3, "description": ["a", "b", "c"]}
    parquet.write_table(pyarrow.table(content), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"column smiles of .* is nested"):
        read_table(str(tmp_path / "t.parquet"), "all")


def test_a_molecule_beyond_all_lengths_is_not_parsed() -> None:
    assert parse("C" * 2000) is not None
    assert parse("C" * 2001) is None
