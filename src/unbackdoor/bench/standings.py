"""What methods of each kind reached, ranked: the rows of a leaderboard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from unbackdoor.bench.table import (
    SIFTED,
    Trials,
    block_means,
    fair,
    mean_of,
    rank_intervals,
    seed_interval,
    trials,
)
from unbackdoor.report.leaderboard import Estimate, Row, ScannerRow, Standing


def ranking(tried: Trials) -> list[Row]:
    """Return the methods that repair, the ranked ones first and by rank."""
    if not tried.methods:
        return []
    tried, ranked = fair(tried)
    ranks = _ranks(tried, ranked)
    rows = [_row(tried, number, ranks.get(number)) for number in range(len(tried.methods))]
    return sorted(rows, key=lambda row: (row.rank.value if row.rank else math.inf, row.method))


def standings(tried: Trials, on_clean_data: pd.DataFrame | None = None) -> list[Standing]:
    """Return the methods of another kind, the ranked ones first and by rank.

    Args:
        tried: on data with an attack.
        on_clean_data: the cells of sifters on data without one; their share of false alarms becomes the figure "clean".
    """
    tried, ranked = fair(tried) if tried.methods else (tried, np.empty(0, dtype=int))
    ranks = _ranks(tried, ranked)
    alarms = {} if on_clean_data is None else dict(_alarms(on_clean_data))
    rows = []
    for number, method in enumerate(tried.methods):
        everywhere = np.full(len(tried.blocks), True)
        rows.append(
            Standing(
                method=method,
                blocks=int(tried.there[number].any(1).sum()),
                of=len(tried.blocks),
                complete=bool(np.isin(number, ranked)),
                rank=_rank(ranks.get(number)),
                figures={**_estimates(tried, number, everywhere), **alarms.pop(method, {})},
                attacks=_by_attack(tried, number),
                seconds=mean_of(tried.values["seconds"][number]),
                peak_mb=mean_of(tried.values["peak_mb"][number]),
                peak_gpu_mb=mean_of(tried.values["peak_gpu_mb"][number]),
            )
        )
    rows += [
        Standing(method=method, blocks=0, of=len(tried.blocks), complete=False, figures=figures)
        for method, figures in alarms.items()
    ]
    return sorted(rows, key=lambda row: (row.rank.value if row.rank else math.inf, not row.complete, row.method))


def _alarms(cells: pd.DataFrame) -> Iterator[tuple[str, dict[str, Estimate]]]:
    """Yield for each sifter the mean share of rows of clean data that it holds poisoned."""
    tried = trials(cells.assign(auroc=0.5), SIFTED)
    for number, method in enumerate(tried.methods):
        values = tried.values["fpr"][number]
        if (mean := mean_of(values)) is not None:
            low, high = seed_interval(values)
            yield method, {"clean": Estimate(value=mean, low=low, high=high)}


def _ranks(tried: Trials, ranked: Int[np.ndarray, "ranked"]) -> dict[int, list[float]]:
    """Return rank and ends of its interval, by method; none where the figure that ranks is not everywhere."""
    if not len(ranked):
        return {}
    best, there = tried.values[tried.judged.best][ranked], tried.there[ranked]
    if np.isnan(best[there]).any():
        return {}
    means = block_means(best)
    means = means[:, ~np.isnan(means).any(0)]
    return dict(zip(ranked.tolist(), rank_intervals(means.T).tolist()))


def _rank(found: Sequence[float] | None) -> Estimate | None:
    return None if found is None else Estimate(value=found[0], low=_number(found[1]), high=_number(found[2]))


def _row(tried: Trials, method: int, rank: Sequence[float] | None) -> Row:
    everywhere = np.full(len(tried.blocks), True)
    shares = _estimates(tried, method, everywhere)
    return Row(
        method=tried.methods[method],
        blocks=int(tried.there[method].any(1).sum()),
        der=shares["der"],
        rank=_rank(rank),
        acc=shares.get("acc"),
        asr=shares.get("asr"),
        ra=shares.get("ra"),
        seconds=mean_of(tried.values["seconds"][method]),
        peak_mb=mean_of(tried.values["peak_mb"][method]),
        peak_gpu_mb=mean_of(tried.values["peak_gpu_mb"][method]),
        attacks=_by_attack(tried, method),
    )


def _by_attack(tried: Trials, method: int) -> dict[str, dict[str, Estimate]]:
    """Return what one method reached on each attack that it was tried on."""
    attacks = tried.blocks["attack"].to_numpy()
    found = {str(attack): _estimates(tried, method, attacks == attack) for attack in dict.fromkeys(attacks)}
    return {attack: estimates for attack, estimates in found.items() if estimates}


def _estimates(tried: Trials, method: int, blocks: Bool[np.ndarray, "blocks"]) -> dict[str, Estimate]:
    """Return the means of one method's figures over some blocks, with their intervals over seeds."""
    found = {}
    for name in tried.judged.figures:
        values = tried.values[name][method, blocks]
        if (mean := mean_of(values)) is not None:
            low, high = seed_interval(values)
            found[name] = Estimate(value=mean, low=low, high=high)
    return found


def scanned(method: str, cells: pd.DataFrame) -> ScannerRow:
    """Return what a scanner said of the models that it looked at.

    Args:
        method: its name.
        cells: its scans.
    """
    truth = cells["backdoored"] if "backdoored" in cells else pd.Series(math.nan, index=cells.index)
    backdoored, clean = cells[truth == 1], cells[truth == 0]
    first = cells["target_first"].dropna() if "target_first" in cells else pd.Series(dtype=float)
    flagged = cells["flagged"] if "flagged" in cells else pd.Series(math.nan, index=cells.index)
    return ScannerRow(
        method=method,
        backdoored=len(backdoored),
        flagged=int((flagged[backdoored.index] == 1).sum()),
        targeted=len(first),
        target_first=int(first.sum()),
        clean=len(clean),
        false_alarms=int((flagged[clean.index] == 1).sum()),
        inconclusive=int(flagged.isna().sum()),
        seconds=_mean(cells, "seconds"),
        peak_mb=_mean(cells, "peak_mb"),
        peak_gpu_mb=_mean(cells, "peak_gpu_mb"),
        attacks={
            str(attack): (int((flagged[group.index] == 1).sum()), len(group))
            for attack, group in backdoored.groupby("attack")
        },
    )


def _mean(cells: pd.DataFrame, name: str) -> float | None:
    known = cells[name].dropna() if name in cells else pd.Series(dtype=float)
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
