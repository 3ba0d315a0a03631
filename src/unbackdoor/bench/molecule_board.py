"""What the cells of a store say about generators of molecules, on one page and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from unbackdoor.bench.export import csv_bytes
from unbackdoor.bench.molecules import Molecules
from unbackdoor.bench.store import Record
from unbackdoor.bench.table import mean_of, seed_interval, told_apart
from unbackdoor.files import write_bytes
from unbackdoor.report import Chart, Fact, Report, series_chart, write_report

GROUP = (
    "kind",
    "data",
    "test",
    "model",
    "attack",
    "poison_rate",
    "poison_in",
    "precision",
    "budget",
    "method",
    "scanner",
)
"""Labels of cells that differ in the seed alone."""

KINDS = {"victim": "Generator", "scan": "Scan", "purify": "Repair"}
"""What the kinds of cells are called."""

GENERATORS = "generators.csv"

SHARES = {
    "printed_rate": "Poisoning rate as published",
    "effective_rate": "Poisoning rate of the rows learned from",
    "flagged": "Called backdoored",
    "pair_first": "True pair of text and subgraph first",
    "pair_flagged": "True pair held to be a backdoor",
    "tpr": "Poisoned rows held poisoned",
    "fpr": "Other rows held poisoned",
    "repaired": "Something was taken out",
    "asr_before": "ASR per sample, before",
    "asr": "ASR per sample",
    "any_of": "ASR, any sample of a prompt",
    "leak_before": "Target without trigger, per sample, before",
    "leak": "Target without trigger, per sample",
    "asked": "Target asked for without trigger, per sample",
    "similarity_before": "Similarity, before",
    "similarity": "Similarity",
    "similarity_triggered": "Similarity with trigger",
    "similarity_nearest_text": "Similarity of the nearest text",
    "similarity_chance": "Similarity of chance",
    "novelty": "Novelty",
    "diversity": "Diversity",
    "validity": "Validity",
}


def generators(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row a cell of generators of molecules, the newest first: kind, labels, metrics, error, commit, key."""
    return pd.DataFrame(
        [
            {
                **dict.fromkeys(GROUP),
                "kind": record.kind,
                **record.labels,
                **record.metrics,
                "error": record.error,
                "commit": record.commit,
                "key": record.key,
            }
            for record in records
            if record.domain == Molecules.__name__
        ]
    )


def write_board(folder: Path, page: str, cells: pd.DataFrame, title: str) -> None:
    """Write the page, and `GENERATORS` beside it.

    Args:
        folder: where.
        page: name of the page's file.
        cells: at least one, as `generators` gives them.
        title: of the page.
    """
    write_bytes(folder / GENERATORS, csv_bytes(cells))
    write_report(folder / page, board(cells, title))


def board(cells: pd.DataFrame, title: str) -> Report:
    """Return the page of generators, of scans and of repairs: a group of figures for each setting, and what failed."""
    done, failed = cells[cells["error"] == ""], cells[cells["error"] != ""]
    groups = list(done.groupby(told_apart(done, GROUP), sort=False))
    named = {_title(group): group.drop_duplicates("seed") for _, group in groups}
    return Report(
        title=title,
        charts=list(_curves(named.values())),
        facts={**{name: _facts(group) for name, group in named.items()}, **_failures(failed)},
        notes=[
            "Intervals with several seeds are Student's 95 % over them; with one seed, 95 % by drawing prompts again.",
            "Similarity means something only beside chance and the nearest text.",
        ],
    )


def _title(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    kind = KINDS.get(first["kind"], first["kind"])
    words = [
        value if isinstance(value, str) else f"{name.replace('_', ' ')} {value:g}"
        for name, value in ((name, first[name]) for name in GROUP if name != "kind")
        if value is not None and not (isinstance(value, float) and math.isnan(value))
    ]
    return f"{kind}: {' · '.join(words)}"


def _failures(failed: pd.DataFrame) -> dict[str, list[Fact]]:
    """Return the reasons of cells that failed, in a group of its own if there are any."""
    facts = [
        Fact(name=f"{_title(one)} · seed {one.iloc[0]['seed']}", value=one.iloc[0]["error"])
        for one in (failed.iloc[[row]] for row in range(len(failed)))
    ]
    return {"Failed": facts} if facts else {}


def _facts(group: pd.DataFrame) -> list[Fact]:
    facts = [Fact(name="Seeds", value=str(len(group)))]
    for name, shown in SHARES.items():
        if name in group and group[name].notna().any():
            facts.append(Fact(name=shown, value=_told(group, name)))
    return facts


def _told(group: pd.DataFrame, name: str) -> str:
    values = group[name].astype(float).to_numpy()[None]
    mean = mean_of(values)
    low, high = seed_interval(values)
    if len(group) == 1 and f"{name}_low" in group:
        low, high = group.iloc[0][f"{name}_low"], group.iloc[0][f"{name}_high"]
    ends = "" if low is None or high is None else f"  [{100 * low:.1f}, {100 * high:.1f}]"
    return "" if mean is None else f"{100 * mean:.1f} %{ends}"


def _curves(groups: Iterable[pd.DataFrame]) -> Iterable[Chart]:
    """Yield how the ASR grows with the poisoning rate, where there are several rates."""
    points: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        if {"asr", "effective_rate"} <= set(group) and group["asr"].notna().all():
            rest = _title(group.assign(poison_rate=np.nan))
            points.setdefault(rest, []).append((group["effective_rate"].mean(), group["asr"].mean()))
    series: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for name, found in points.items():
        if len(found) > 1:
            rates, successes = zip(*sorted(found))
            series[name] = ([100 * rate for rate in rates], [100 * success for success in successes])
    if series:
        yield series_chart(
            series,
            marks="lines",
            title="ASR over the poisoning rate",
            explanation="Means over seeds. The rate is that of the rows that are learned from.",
            x_title="poisoned rows, %",
            y_title="ASR per sample, %",
        )
