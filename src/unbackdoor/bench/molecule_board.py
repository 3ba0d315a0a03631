"""What the cells of a store say about generators of molecules, on one page and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from unbackdoor.bench.export import csv_bytes
from unbackdoor.bench.given import NO_ATTACK
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
    order = {kind: number for number, kind in enumerate(KINDS)}
    cells = cells.sort_values("kind", key=lambda kinds: kinds.map(order), kind="stable")
    done, failed = cells[cells["error"] == ""], cells[cells["error"] != ""]
    common, names = _labels(cells)
    groups = list(done.groupby(told_apart(done, GROUP), sort=False))
    named = {_title(group, names): group.drop_duplicates("seed") for _, group in groups}
    facts = {title: _facts(group) for title, group in named.items()}
    return Report(
        title=title,
        charts=list(_curves(named.values(), names)),
        facts={**({"All of them": common} if common else {}), **facts, **_failures(failed, names)},
        notes=[
            "Intervals with several seeds are Student's 95 % over them; with one seed, 95 % by drawing prompts again.",
            "Similarity means something only beside chance and the nearest text.",
        ],
    )


def _labels(cells: pd.DataFrame) -> tuple[list[Fact], list[str]]:
    """Return the labels that titles need not tell, as all settings that have one have the same; names of the others."""
    settings = cells[list(GROUP)].drop_duplicates()
    singles = [settings.iloc[[row]] for row in range(len(settings))]
    common, names = [], [name for name in GROUP if name != "kind"]
    for name in list(names):
        values = settings[name].dropna().unique()
        shorter = [other for other in names if other != name]
        # Without it two settings may look the same, of which only one has it.
        if len(values) <= 1 and len({_title(one, shorter) for one in singles}) == len(singles):
            names = shorter
            common += [Fact(name=_shown(name), value=_text(name, value)) for value in values]
    return common, names


def _shown(name: str) -> str:
    return name.replace("_", " ")


def _text(name: str, value: str | float) -> str:
    if not isinstance(value, str):
        return f"{value:g}"
    return "no attack" if (name, value) == ("attack", NO_ATTACK) else value


def _title(group: pd.DataFrame, names: Sequence[str]) -> str:
    """Return what kind of cells these are, and the labels by which they differ from others."""
    first = group.iloc[0]
    words = [
        _text(name, first[name]) if isinstance(first[name], str) else f"{_shown(name)} {_text(name, first[name])}"
        for name in names
        if not pd.isna(first[name])
    ]
    kind = KINDS.get(first["kind"], first["kind"])
    return f"{kind}: {' · '.join(words)}" if words else kind


def _failures(failed: pd.DataFrame, names: Sequence[str]) -> dict[str, list[Fact]]:
    """Return the reasons of cells that failed, in a group of its own if there are any."""
    facts = [
        Fact(name=f"{_title(one, names)} · seed {one.iloc[0]['seed']}", value=one.iloc[0]["error"])
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


def _curves(groups: Iterable[pd.DataFrame], names: Sequence[str]) -> Iterable[Chart]:
    """Yield how the ASR grows with the poisoning rate, where there are several rates."""
    points: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        if {"asr", "effective_rate"} <= set(group) and group["asr"].notna().all():
            rest = _title(group, [name for name in names if name != "poison_rate"])
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
