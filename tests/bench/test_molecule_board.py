"""What the board of generators says of cells that failed, and what it leaves of an earlier leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.bench.records import repaired
from unbackdoor.bench.molecule_board import board, generators
from unbackdoor.bench.store import Record, Store
from unbackdoor.commands.leaderboard import run as leaderboard


def generator(seed: int, *, error: str = "", **metrics: Any) -> Record:
    return Record(
        key=f"{seed}{error}",
        run="0" * 32,
        domain="Molecules",
        kind="victim",
        labels={"data": "chebi20", "model": "Small", "attack": "None", "precision": "bf16", "seed": seed},
        metrics=metrics,
        error=error,
        machine={},
        needs="",
        duration=1.0,
        commit="abc",
    )


def test_generators_that_failed_are_told_with_their_reasons_and_not_averaged() -> None:
    cells = generators([generator(0, similarity=0.5), generator(1, error="out of memory")])
    assert cells["error"].tolist() == ["", "out of memory"]
    assert cells["commit"].tolist() == ["abc", "abc"]
    facts = board(cells, "Generators").facts
    told = {title: {fact.name: fact.value for fact in found} for title, found in facts.items()}
    assert told["Generator"] == {"Seeds": "1", "Similarity": "50.0 %"}
    assert told["All of them"] == {"data": "chebi20", "model": "Small", "attack": "no attack", "precision": "bf16"}
    (failed,) = facts["Failed"]
    assert failed.value == "out of memory"
    assert failed.name == "Generator · seed 1"
    assert "Failed" not in board(generators([generator(0, similarity=0.5)]), "Generators").facts


def test_a_store_in_which_all_generators_failed_has_a_page_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(Store, "records", lambda self: [generator(0, error="no such pairs")])
    leaderboard(store=store.uri, work=tmp_path, out=tmp_path / "board")
    assert "no such pairs" in (tmp_path / "board" / "report.html").read_text()


def test_nothing_of_an_earlier_leaderboard_of_another_kind_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    def written(*records: Record) -> set[str]:
        monkeypatch.setattr(Store, "records", lambda self: list(records))
        leaderboard(store=store.uri, work=tmp_path, out=tmp_path / "board")
        return {path.name for path in (tmp_path / "board").iterdir() if not path.name.startswith(".")}

    made, image = generator(0, similarity=0.5), repaired("FT", 0.5)
    tables = {"cells.csv", "cells.parquet", "ranking.csv", "ranking.tex"}
    generated = {"generators.html", "generators.csv"}
    both = {"report.html", "run.json"}
    assert written(made, image) >= both | tables | generated
    assert written(made) & (tables | generated) == {"generators.csv"}
    assert written(image) & (tables | generated) == tables
    assert pd.read_csv(tmp_path / "board" / "ranking.csv")["method"].tolist() == ["FT"]
