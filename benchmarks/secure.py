"""Every secure trainer on the poisoned training data of several attacks, and repairs that need no clean images.

The cells of a grid, resumable. Writes one line of JSON a finished cell to results/NAME.jsonl and the table
results/NAME.md, where NAME is the grid's. Beside the trainers stands the victim that was trained on the same data
without a defence; victims and attacks are kept in --work. A finished cell is not done again:

    python benchmarks/secure.py benchmarks/grids/secure-small.yaml
    python benchmarks/secure.py benchmarks/grids/secure-small.yaml --table     # only write the table
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from grid_cells import run_grid
from record import machines
from tables import Row, all_measured, clocks, error, interval, mean, percent, refusals

from unbackdoor.bench.table import rate

UNDEFENDED = "no defence"
ATTACKS, SEEDS = 6, 3
"""That an aim is of; with fewer nothing is judged."""
PUBLISHED_GRID, PUBLISHED = "d-st-paper.yaml", {"acc_counted": 0.9166, "asr": 0.0121}
"""The grid in the protocol of D-ST's paper, and its means over seven attacks there; two attacks are judged."""
NEAR = 0.01
"""By which ours may be worse than published."""
AIMS: Sequence[tuple[str, str, str, float]] = (
    ("DBR", "asr", "ASR, mean over attacks", 0.02),
    ("DBR", "fell", "ACC fell by, mean over attacks", 0.015),
    ("DST", "asr", "ASR, mean over attacks", 0.03),
)
"""Method, figure, what it is, and the most that it may be; that of Trap-and-Replace is on the attacks of its paper, in
trap_and_replace.py."""


def written(grid: str, wanted: int, rows: Sequence[Row]) -> str:
    """Return the trainings as Markdown: aims, means of each method, then every cell."""
    lines = [
        f"# {grid}",
        "",
        f"Made by `python benchmarks/secure.py benchmarks/grids/{grid}`; {len(rows)} of {wanted} cells are done. What"
        " ACC fell by, and DER = (1 + what ASR fell by - what ACC fell by) / 2, neither fall below 0, are against the"
        " victim that was trained without a defence on the same data and seed. ACC counted is that of the test images"
        " that ASR counts, so without the target class. MSE is that of the decoder, on all clean and on triggered test"
        " images. Seconds are of the wall clock without measuring; CPU seconds tell whether a row"
        " was disturbed: undisturbed, they are close to twice as many on two threads. Peak MB is the whole process with"
        " data and libraries.",
        "",
        *machines(list(rows)),
        "",
    ]
    refused = [row for row in rows if "error" in row]
    rows = completed([row for row in rows if "error" not in row])
    attacked = [row for row in rows if "asr" in row]
    aims = _published(attacked) if grid == PUBLISHED_GRID else _aims(attacked)
    lines += [*aims, "", *_means(attacked, rows), "", *_cells(rows)]
    if refused:
        lines += ["", *refusals(refused)]
    return "\n".join(lines) + "\n"


def completed(rows: Sequence[Row]) -> list[Row]:
    """Return copies of the rows with DER, what ACC fell by, and a name for victims."""
    rows = [{**row, "method": row["method"] or UNDEFENDED} for row in rows]
    rate(rows)
    victims = {_place(row): row for row in rows if row["kind"] == "victim"}
    for row in rows:
        # A repaired model's row tells what its victim was; a trainer's has none.
        before = row.get("before", victims.get(_place(row)))
        if row["kind"] != "victim" and before is not None:
            row["fell"] = before["acc"] - row["acc"]
    return rows


def _place(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("data", "network", "attack", "poison_rate", "precision", "seed"))


def _aims(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what was to be reached, beside what was."""
    yield "| method | figure | at most % | reached % | yes |"
    yield "|---|---|---:|---:|---|"
    for method, name, words, most in AIMS:
        mine = [row for row in rows if row["method"].split()[0] == method]
        value = mean(mine, name)
        if value is not None:
            told = ("yes" if value <= most else "no") if all_measured(mine, ATTACKS, SEEDS) else "not all measured"
            yield f"| {method} | {words} | {100 * most:g} | {percent(value)} | {told} |"


def _published(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what the paper of D-ST has, beside what was reached."""
    mine = [row for row in rows if row["method"].split()[0] == "DST"]
    yield "| method | figure, mean over two attacks | published, over seven % | reached % | within a point |"
    yield "|---|---|---:|---:|---|"
    for name, words, sign in (("acc_counted", "ACC counted", -1), ("asr", "ASR", 1)):
        value = mean(mine, name)
        if value is not None:
            near = sign * (value - PUBLISHED[name]) <= NEAR
            told = ("yes" if near else "no") if all_measured(mine, 2, 1) else "not all measured"
            yield f"| DST | {words} | {percent(PUBLISHED[name])} | {percent(value)} | {told} |"


def _means(rows: Sequence[Row], everything: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each method."""
    yield (
        "| method | attacks | seeds | ACC % | ACC counted % | ACC fell by | ASR % | worst ASR % | RA % | DER % |"
        " MSE clean | MSE triggered | ACC on clean data % | seconds | peak MB |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|"
    methods = sorted({row["method"] for row in rows}, key=lambda one: (one != UNDEFENDED, one))
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        worst = max(mine, key=lambda row: row["asr"])
        clean = [row["acc"] for row in everything if row["method"] == method and "asr" not in row]
        seconds = [row["seconds"] for row in mine if "seconds" in row]
        fields = [
            *(method, str(len({row["attack"] for row in mine})), str(len({row["seed"] for row in mine}))),
            *(percent(mean(mine, name)) for name in ("acc", "acc_counted", "fell", "asr")),
            f"{percent(worst['asr'])} ({worst['attack']})",
            *(percent(mean(mine, name)) for name in ("ra", "der")),
            *(error(mean(mine, name)) for name in ("mse_clean", "mse_triggered")),
            percent(statistics.mean(clean) if clean else None),
            *(f"{statistics.mean(seconds):.0f}" if seconds else "", f"{max(row['peak_mb'] for row in mine):.0f}"),
        ]
        yield f"| {' | '.join(fields)} |"


def _cells(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| attack | method | seed | ACC % [95 % interval] | ACC counted % | ASR % [95 % interval] | RA % | DER % |"
        " MSE clean | MSE triggered | rounds | seconds | CPU seconds | peak MB |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in sorted(rows, key=lambda row: (row["attack"], row["method"] != UNDEFENDED, row["method"], row["seed"])):
        fields = [
            *(row["attack"], row["method"], f"{row['seed']:g}"),
            *(interval(row, "acc"), percent(row.get("acc_counted")), interval(row, "asr")),
            *(percent(row.get(name)) for name in ("ra", "der")),
            *(error(row.get(name)) for name in ("mse_clean", "mse_triggered")),
            f"{row['rounds']:.0f}" if "rounds" in row else "",
            *clocks(row),
            f"{row['peak_mb']:.0f}",
        ]
        yield f"| {' | '.join(fields)} |"


if __name__ == "__main__":
    run_grid(__doc__, ["victim", "secure", "purify"], written, "build/secure")
