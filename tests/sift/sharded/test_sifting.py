"""Sifted file by file, rows are told the same as sifted at once; what is done stays done."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from tests.planted import CLASSES, pictures, planted, runtime
from tests.sift.sharded.here import Here, write_files
from tests.sift.sharded.slowly import Slowly, at_work
from unbackdoor.cluster import RETRIES
from unbackdoor.data import DefenderData, ImageSet, read_images
from unbackdoor.data import shards as shards_module
from unbackdoor.data.shards import Shards
from unbackdoor.errors import DataError, InputError, OutputError
from unbackdoor.models import Network
from unbackdoor.sift import FCT, LossIsolation, Suspicion
from unbackdoor.sift.row_sifter import TIES, RowSifter
from unbackdoor.sift.sharded import ShardedSuspicion, Thresholds, sift_shards, tables
from unbackdoor.sift.sharded.ranks import chance_of, keys_of
from unbackdoor.sift.sharded.scoring import BEGUN, Scorer, Scoring
from unbackdoor.sift.sharded.sifting import divide
from unbackdoor.testing.samples import same_state, state_of

SIZES = (130, 0, 270, 200, 200)
METHODS = [FCT(epochs=0, draws=2), LossIsolation(poisoned_share=0.1)]

ROUNDING = 1e-4
"""Of a score, relative: sums of single precision depend on how many rows go through the network together."""


@pytest.fixture(scope="module")
def rows() -> ImageSet:
    """800 rows, a tenth of them with a patch."""
    return planted(0).fitted.train


@pytest.fixture
def folder(tmp_path: Path, rows: ImageSet) -> Path:
    return write_files(tmp_path / "data", rows, SIZES, poison=planted(0).fitted.kinds == 1)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "PIECE", 64)
    monkeypatch.setattr(tables, "ROWS", 100)


def sift(folder: Path, method: RowSifter, out: Path, workers: Here | None = None, **options: Any) -> ShardedSuspicion:
    given = {"model": planted(0).suspect, **options}
    chosen = given.pop("runtime", runtime())
    return sift_shards(Shards.of(folder), method, chosen, workers or Here(), out, **given)


def write_scores(folder: Path, scores: np.ndarray, at: list[int]) -> tuple[Path, list[str]]:
    """Write tables of scores, divided at these rows; return their folder and names."""
    parts = {f"{number}.parquet": part for number, part in enumerate(np.split(scores, at))}
    for name, part in parts.items():
        parquet.write_table(pyarrow.table({"score": part}), folder / name)
    return folder, list(parts)


def held_in(
    folder: Path, names: list[str], thresholds: Thresholds, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return which rows of each table are held clean, and which poisoned."""
    scores = {name: parquet.read_table(folder / name)["score"].to_numpy() for name in names}
    return {name: thresholds.held(keys_of(scores[name], chance_of(name, seed))) for name in names}


def table_of(out: Path) -> pyarrow.Table:
    return pyarrow.concat_tables([parquet.read_table(path) for path in sorted(out.glob("*.parquet"))])


def at_once(rows: ImageSet, method: RowSifter, model: Network | None, seed: int = 0) -> Suspicion:
    return method.score(DefenderData(untrusted=rows), runtime(seed), model)


def check_same(out: Path, found: ShardedSuspicion, whole: Suspicion) -> None:
    """Check that tables and numbers say what was said at once."""
    table = table_of(out)
    scores = torch.tensor(table["score"].to_pylist())
    torch.testing.assert_close(scores, whole.scores, atol=1e-7, rtol=ROUNDING)
    assert table["suspicion"].to_pylist() == whole.words()
    assert found.poisoned == int(whole.poisoned.sum())
    assert found.marks.clean == int(whole.clean.sum())
    levels = [float(value) for value in found.quantiles.values()]
    wanted = np.quantile(scores.numpy(), [float(level) for level in found.quantiles], method="nearest")
    assert levels == pytest.approx(wanted.tolist(), rel=0.05, abs=1e-3)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_rows_are_told_the_same_as_at_once(tmp_path: Path, folder: Path, rows: ImageSet, method: RowSifter) -> None:
    found = sift(folder, method, tmp_path / "out")
    check_same(tmp_path / "out", found, at_once(rows, method, planted(0).suspect))
    table = table_of(tmp_path / "out")
    names = [shard.name for shard in Shards.of(folder).shards]
    wanted = [(name, row) for name, size in zip(names, SIZES) for row in range(size)]
    assert list(zip(table["shard"].to_pylist(), table["row"].to_pylist())) == wanted
    assert table["label"].to_pylist() == rows.labels.tolist()
    assert table["class_name"].to_pylist() == [rows.class_names[label] for label in rows.labels.tolist()]
    assert table["reason"][0].as_py() == method.reason(table["score"][0].as_py())
    assert found.sample == found.kept == 0
    assert found.rows == len(rows)
    assert sum(map(sum, found.marks.bins)) == len(rows)
    assert sum(found.marks.bins[1]) == found.poisoned


def test_a_model_that_is_adapted_to_a_sample_of_all_rows_is_the_one_of_all_rows(
    tmp_path: Path, folder: Path, rows: ImageSet
) -> None:
    model, before = planted(0).suspect, state_of(planted(0).suspect)
    found = sift(folder, FCT(epochs=1, draws=1), tmp_path / "out", sample=len(rows))
    check_same(tmp_path / "out", found, at_once(rows, FCT(epochs=1, draws=1), model))
    assert found.sample == len(rows)
    assert same_state(before, state_of(model))
    assert len(found.evidence["spreads"]) == 2


def test_without_a_model_one_learns_from_the_sample_alone(tmp_path: Path, folder: Path) -> None:
    method = LossIsolation(epochs=1)
    found = sift(folder, method, tmp_path / "out", model=None, sample=60)
    assert found.sample == 60
    seed = runtime().generator("shards", "sample").initial_seed()
    model = method.learn(Shards.of(folder).sample(60, seed).in_canonical_order(), runtime(), None)
    check_same(tmp_path / "out", found, at_once(read_images(folder, "any"), method, model))


def test_no_more_rows_are_held_at_a_time_than_a_piece(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    real = ImageSet.__post_init__

    def noting(self: ImageSet) -> None:
        held.append(len(self.images))
        real(self)

    monkeypatch.setattr(ImageSet, "__post_init__", noting)
    written: list[int] = []
    flush = tables.TableWriter.flush
    monkeypatch.setattr(tables.TableWriter, "flush", lambda self: (written.append(self._held), flush(self))[1])
    sift(folder, FCT(epochs=0, draws=1), tmp_path / "out")
    assert max(held) == shards_module.PIECE
    assert max(written) < tables.ROWS + shards_module.PIECE


def test_half_a_run_is_not_done_again(tmp_path: Path, folder: Path) -> None:
    out, method = tmp_path / "out", FCT(epochs=0, draws=1)
    with pytest.raises(KeyboardInterrupt):
        sift(folder, method, out, Here(stop_after=3))
    first = {path.name: path.stat().st_ino for path in out.glob("*.parquet")}
    assert len(first) == 3
    (out / ".train.parquet.abc.partial").write_bytes(b"of a run that was killed")
    found = sift(folder, method, out)
    assert found.kept == 3
    assert not list(out.glob(".*"))
    assert sift(folder, method, out).kept == 5, "nothing is left to score"
    elsewhere = tmp_path / "elsewhere"
    sift(folder, method, elsewhere)
    for path in sorted(out.glob("*.parquet")):
        assert parquet.read_table(path).equals(parquet.read_table(elsewhere / path.name))


RUN = """
import sys
from pathlib import Path
from tests.planted import planted, runtime
from tests.sift.sharded.here import Here
from tests.sift.sharded.slowly import Slowly
from unbackdoor.data.shards import Shards
from unbackdoor.sift.sharded import sift_shards
data, out, noted = map(Path, sys.argv[1:])
method = Slowly(seconds=0.5, noted=noted)
sift_shards(Shards.of(data), method, runtime(), Here(), out, model=planted(0).suspect)
"""


def test_a_killed_process_loses_the_file_that_it_was_at(tmp_path: Path, rows: ImageSet) -> None:
    folder = write_files(tmp_path / "data", rows.subset(torch.arange(120)), [40] * 3)
    out, noted = tmp_path / "out", tmp_path / "noted"
    noted.mkdir()
    words = [sys.executable, "-c", RUN, str(folder), str(out), str(noted)]
    killed = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    # The second file is at work, and a part of its table is written.
    while len(at_work(noted)) < 2:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert [path.name for path in out.glob("*.parquet")] == ["train-00000-of-00003.parquet"]
    assert list(out.glob(".*.partial"))
    found = sift(folder, Slowly(seconds=0.5, noted=noted), out)
    assert (found.rows, found.kept) == (120, 1)
    assert len(at_work(noted)) == 4, "each file once, and once more the one that was lost"
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in folder.iterdir())


def test_a_file_that_costs_its_process_again_and_again_is_named(tmp_path: Path, folder: Path) -> None:
    shards, out = Shards.of(folder), tmp_path / "out"
    model = planted(0).suspect
    scoring = Scoring(shards=shards, method=LossIsolation(), network=model, runtime=runtime(), place="cpu", folder=out)
    note = out / f".{shards.shards[0].name}{BEGUN}"
    out.mkdir()
    note.write_bytes(b"." * (RETRIES + 1))
    with pytest.raises(DataError, match=r"train-00000-of-00005\.parquet was begun 4 times"):
        Scorer(scoring)(shards.shards[0])
    note.write_bytes(b"." * RETRIES)
    assert Scorer(scoring)(shards.shards[0]) == {"kept": False}
    assert not note.exists()


def test_who_asks_may_have_another_device_than_the_processes(tmp_path: Path, folder: Path) -> None:
    """With `auto` a machine without a GPU asks processes that have some: both must take a table for the same."""
    shards, model = Shards.of(folder), planted(0).suspect

    def fingerprint(device: str, place: str) -> str:
        given = replace(runtime(), device=device)
        scoring = Scoring(
            shards=shards, method=LossIsolation(), network=model, runtime=given, place=place, folder=tmp_path
        )
        return scoring.fingerprint()

    assert fingerprint("auto", "cuda") == fingerprint("cpu", "cuda")
    assert fingerprint("cpu", "cuda") != fingerprint("cpu", "cpu")


@pytest.mark.parametrize("change", ["seed", "method", "revision", "model", "precision"])
def test_scores_of_other_settings_are_not_taken_for_these(
    tmp_path: Path, folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, method = tmp_path / "out", FCT(epochs=0, draws=1)
    sift(folder, method, out)
    changed: dict[str, Any] = {
        "seed": {"runtime": runtime(1)},
        "model": {"model": planted(0).twin},
        "precision": {"runtime": replace(runtime(), precision="bf16")},
    }.get(change, {})
    if change == "revision":
        monkeypatch.setattr(FCT, "revision", FCT.revision + 1)
    assert sift(folder, FCT(epochs=0, draws=2) if change == "method" else method, out, **changed).kept == 0


def test_a_file_that_has_changed_or_a_damaged_table_is_scored_anew(
    tmp_path: Path, folder: Path, rows: ImageSet
) -> None:
    out, method = tmp_path / "out", LossIsolation()
    sift(folder, method, out)
    write_files(folder, rows.subset(torch.arange(799, -1, -1)), SIZES, poison=torch.zeros(800, dtype=torch.bool))
    assert sift(folder, method, out).kept == 1, "the empty file is the same"
    damaged = sorted(out.glob("*.parquet"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert sift(folder, method, out).kept == 4


def test_a_broken_row_costs_its_file_alone_and_the_rest_is_kept(tmp_path: Path, folder: Path, rows: ImageSet) -> None:
    out, method = tmp_path / "out", LossIsolation()
    path = sorted(folder.glob("*.parquet"))[2]
    good = path.read_bytes()
    table = parquet.read_table(path)
    cells = table["image"].to_pylist()
    cells[77] = {"bytes": b"broken", "path": None}
    broken = table.set_column(0, "image", pyarrow.array(cells, table.schema.field("image").type))
    parquet.write_table(broken.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(DataError, match=r"image \(row 77\) of .*train-00002-of-00005\.parquet") as caught:
        sift(folder, method, out)
    assert "the other 4 files are done" in str(caught.value)
    assert {one.name for one in out.iterdir()} == {one.name for one in folder.iterdir()} - {path.name}
    path.write_bytes(good)
    found = sift(folder, method, out)
    assert found.kept == 4
    check_same(out, found, at_once(rows, method, planted(0).suspect))


def test_what_is_left_of_each_file_is_written_with_its_columns_and_the_other_splits(
    tmp_path: Path, folder: Path, rows: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[int]] = []
    monkeypatch.setattr(Shards, "check_kept", lambda _, kept: told.append(kept))
    write_files(tmp_path / "other", pictures(40, 3), [40])
    (tmp_path / "other" / "train-00000-of-00001.parquet").rename(folder / "test-00000-of-00001.parquet")
    cleaned = tmp_path / "cleaned"
    sift(folder, LossIsolation(poisoned_share=0.2), tmp_path / "out", clean_out=cleaned)
    kept = torch.tensor([word != "poisoned" for word in table_of(tmp_path / "out")["suspicion"].to_pylist()])
    assert int(kept.sum()) == 640
    assert told == [torch.bincount(rows.labels[kept], minlength=CLASSES).tolist()]
    assert torch.equal(read_images(cleaned, "train").images, rows.images[kept])
    poison = [parquet.read_table(path)["poison"].to_pylist() for path in sorted(cleaned.glob("train*"))]
    assert [value for part in poison for value in part] == (planted(0).fitted.kinds == 1)[kept].tolist()
    test = "test-00000-of-00001.parquet"
    assert (cleaned / test).read_bytes() == (folder / test).read_bytes()
    assert not list(tmp_path.glob(".cleaned*"))


def test_lots_decide_between_rows_that_share_the_score_at_a_threshold(tmp_path: Path) -> None:
    few = planted(0).fitted.train.subset(torch.arange(10))
    copies = few.subset(torch.arange(10).repeat(20))
    folder = write_files(tmp_path / "data", copies, [120, 80])
    method = FCT(epochs=0, draws=1, poisoned_share=0.15, clean_share=0.35)
    found = sift(folder, method, tmp_path / "out")
    whole = at_once(copies, method, planted(0).suspect)
    assert (found.poisoned, found.marks.clean) == (int(whole.poisoned.sum()), int(whole.clean.sum())) == (30, 70)
    assert found.evidence[TIES] == whole.evidence[TIES] == 20
    assert sift(folder, LossIsolation(poisoned_share=0.05), tmp_path / "loss").poisoned == 10


def test_a_share_is_held_clean_though_most_rows_have_one_score(tmp_path: Path) -> None:
    """As where most rows have no features at all, and so a Delta of exactly 0."""
    chance = np.random.default_rng(1)
    scores = np.concatenate([np.zeros(3000), chance.exponential(1, 1000)]).astype(np.float32)
    folder, names = write_scores(tmp_path, chance.permutation(scores), [500, 2000])
    thresholds, _, ties = divide((0.2, 0.05), folder, names, seed=0)
    assert ties == {TIES: 3000}
    held = held_in(folder, names, thresholds, seed=0)
    clean = np.concatenate([held[name][0] for name in names])
    assert (int(clean.sum()), sum(int(poisoned.sum()) for _, poisoned in held.values())) == (800, 200)
    # By lot, not by place: every file has its part, to more than three standard deviations.
    assert all(abs(int(held[name][0].sum()) - 0.2 * len(held[name][0])) < 60 for name in names)
    again = held_in(folder, names[::-1], divide((0.2, 0.05), folder, names[::-1], seed=0)[0], seed=0)
    assert all(np.array_equal(again[name], held[name]) for name in names), "the order of the files does not matter"
    other = held_in(folder, names, divide((0.2, 0.05), folder, names, seed=1)[0], seed=1)
    assert not np.array_equal(np.concatenate([other[name][0] for name in names]), clean)


def test_the_most_suspicious_rows_of_each_class_are_named(tmp_path: Path, folder: Path, rows: ImageSet) -> None:
    method = LossIsolation()
    found = sift(folder, method, tmp_path / "out")
    table = table_of(tmp_path / "out").to_pandas()
    for c in range(CLASSES):
        members = table[table["label"] == c].nlargest(6, "score")
        top = [one for one in found.marks.top if one.label == c]
        assert [(one.shard, one.row) for one in top] == list(zip(members["shard"], members["row"]))
        assert [one.word for one in top] == members["suspicion"].tolist()
        assert found.marks.members[c] == int((rows.labels == c).sum())
        assert found.marks.poisoned[c] == int(((table["label"] == c) & (table["suspicion"] == "poisoned")).sum())


def test_thresholds_are_those_of_all_scores_sorted(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    scores = chance.normal(size=1000).astype(np.float32)
    folder, names = write_scores(tmp_path, scores, [100, 350])
    thresholds, quantiles, ties = divide((0.2, 0.05), folder, names, seed=0)
    clean, poisoned = map(np.concatenate, zip(*held_in(folder, names, thresholds, seed=0).values()))
    assert ties == {TIES: 1}
    assert (thresholds.clean_below, thresholds.poisoned_above) == (np.sort(scores)[200], np.sort(scores)[949])
    assert clean.nonzero()[0].tolist() == np.sort(scores.argsort()[:200]).tolist()
    assert poisoned.nonzero()[0].tolist() == np.sort(scores.argsort()[-50:]).tolist()
    assert quantiles["0"] == scores.min()
    assert quantiles["1"] == scores.max()
    thresholds, _, ties = divide((None, 0.01), folder, names, seed=0)
    everything, poisoned = map(np.concatenate, zip(*held_in(folder, names, thresholds, seed=0).values()))
    assert (int(everything.sum()), int(poisoned.sum())) == (990, 10)
    assert ties == {}
    thresholds, _, ties = divide((0.0005, 0.0005), folder, names, seed=0)
    assert not any(held.any() for pair in held_in(folder, names, thresholds, seed=0).values() for held in pair)
    assert ties == {TIES: 0}


def test_tables_of_files_that_are_gone_are_removed_and_no_other_file(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    sift(folder, LossIsolation(), out)
    pq_of_somebody = out / "mine.parquet"
    parquet.write_table(pyarrow.table({"a": [1]}), pq_of_somebody)
    gone = sorted(folder.glob("*.parquet"))[4]
    gone.unlink()
    found = sift(folder, LossIsolation(), out)
    assert (found.rows, found.kept) == (600, 4)
    assert not (out / gone.name).exists()
    assert pq_of_somebody.exists()


def test_a_model_for_other_data_is_refused_before_any_work(tmp_path: Path, folder: Path) -> None:
    described = replace(planted(0).suspect.description, image_shape=(3, 16, 16))
    other = Network(planted(0).suspect.body, described)
    workers = Here()
    with pytest.raises(InputError, match="3 x 12 x 12"):
        sift(folder, LossIsolation(), tmp_path / "out", workers, model=other)
    with pytest.raises(InputError, match="3 x 12 x 12"):
        sift(folder, FCT(epochs=1), tmp_path / "out", workers, model=other)
    assert workers.done == []


def test_a_folder_that_the_workers_cannot_write_is_said(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write .*train-00000-of-00005\.parquet"):
        sift(folder, LossIsolation(), tmp_path / "out")


def test_a_folder_that_the_workers_do_not_share_is_said(tmp_path: Path, folder: Path) -> None:
    class Elsewhere(Here):
        def each(self, make: Any, shards: Any, *, gpus: bool) -> Any:
            yield from super().each(make, shards, gpus=gpus)
            for path in (tmp_path / "out").glob("*.parquet"):
                path.unlink()

    with pytest.raises(OutputError, match="give a folder by --out that all machines share"):
        sift(folder, LossIsolation(), tmp_path / "out", Elsewhere())
