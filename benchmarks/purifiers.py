"""Every purifier on the kept victims: the cells of a grid, one process each, whatever the session that does them.

Writes one line of JSON a finished cell to results/NAME.jsonl and the table results/NAME.md, where NAME is the grid's.
A finished cell is not done again, though the store of `unbackdoor bench` be lost, and an interrupted one goes on:

    python benchmarks/purifiers.py benchmarks/grids/purify-small.yaml
    python benchmarks/purifiers.py benchmarks/grids/purify-small.yaml --only CLP 'NPD before=layer4.1'    # first
    python benchmarks/purifiers.py benchmarks/grids/purify-small.yaml --table     # only write the table
    python benchmarks/purifiers.py benchmarks/grids/purify-full.yaml --device cuda --minutes 8    # eight minutes of it
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from grid_cells import run_grid
from record import machines

from unbackdoor.bench.given import THERE

IN_SIGHT = {
    "FTSAM learning_rate=0.04": "first tried on BadNets-0, so its rows of seed 0 reach no aim",
    "SAU learning_rate=0.0004": "first tried on BadNets-1, Blended-1 and SIG-1",
}
"""Methods with options that were not chosen blindly, and what was looked at."""


def written(grid: str, wanted: int, rows: Sequence[dict[str, Any]]) -> str:
    """Return the repairs as Markdown: means of each method, then every cell."""
    lines = [
        f"# {grid}",
        "",
        f"Made by `python benchmarks/purifiers.py benchmarks/grids/{grid}`; {len(rows)} of {wanted} cells are done. DER"
        " is (1 + what ASR fell by - what ACC fell by) / 2, neither fall below 0; the best possible is what an ASR of 0"
        " at the victim's ACC would give. Seconds are of the wall clock without measuring; CPU seconds tell whether a"
        " row was disturbed: undisturbed, they are close to twice as many on two threads. Peak MB is the whole process"
        " with data and libraries.",
        *_poison(rows),
        *_in_all(rows),
        "",
        *machines(list(rows)),
        "",
        "| method | clean | seeds | cells | ACC % | ACC fell by | ASR % | worst ASR % | RA % | DER % | best possible"
        " | seconds | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    refused = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    groups = sorted({_group(row) for row in rows}, key=lambda group: (-_der(rows, group), group))
    for group in groups:
        attacks = {row["attack"] for row in rows if _group(row)[:2] == group[:2]}
        lines.append(_mean([row for row in rows if _group(row) == group], attacks))
    lines += [
        "",
        "| victim | method | clean | seed | ACC % | ASR % | RA % | DER % | rounds | seconds | CPU seconds | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += _cells(sorted(rows, key=lambda row: (row["data"], row["attack"], -row.get("der", 0), row["seed"])))
    seen = [f"{name}: {how}" for name, how in IN_SIGHT.items() if any(row["method"] == name for row in rows)]
    lines += ["", f"Chosen in sight of test data: {'; '.join(seen)}."] if seen else []
    if refused:
        lines += ["", *(f"- {row['method']} on {row['attack']}: {row['error']}." for row in refused)]
    return "\n".join(lines) + "\n"


def _poison(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a paragraph on how much of the training data was poisoned."""
    rates: dict[float, list[str]] = {}
    for attack, rate in sorted({(row["attack"], row["poison_rate"]) for row in rows if row["poison_rate"]}):
        rates.setdefault(rate, []).append(attack)
    if rates:
        groups = [f"{100 * rate:g} % ({', '.join(names)})" for rate, names in sorted(rates.items(), reverse=True)]
        yield ""
        yield f"Poisoned of all training images: {'; '.join(groups)}. SIG poisons images of its own class alone."


def _in_all(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a paragraph on the time of all repairs together."""
    done = [row for row in rows if "error" not in row]
    timed = [row["seconds"] for row in done if "seconds" in row]
    if timed:
        rest = len(done) - len(timed)
        beside = f", {rest} more of unknown length not counted" if rest else ""
        yield ""
        yield f"{len(timed)} repairs took {sum(timed) / 60:.1f} minutes in all{beside}."


def _group(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["data"], row["network"], row["method"], row["clean_size"]


def _der(rows: Iterable[dict[str, Any]], group: tuple[Any, ...]) -> float:
    return statistics.mean(row.get("der", 0) for row in rows if _group(row) == group)


def _mean(rows: Sequence[dict[str, Any]], attacks: set[str]) -> str:
    """Return the line of one method: its means over victims and seeds, and which of the attacks these lack."""
    mean = {name: statistics.mean(row[name] for row in rows) for name in ("acc", "asr", "ra", "der")}
    # The clock of a resumed cell knows its last part only, so that it has none.
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    fell = statistics.mean(row["before"]["acc"] - row["acc"] for row in rows)
    best = statistics.mean((1 + row["before"]["asr"]) / 2 for row in rows)
    worst = max(rows, key=lambda row: row["asr"])
    lacking = sorted(attacks - {row["attack"] for row in rows})
    percents = (mean["acc"], fell, mean["asr"])
    fields = [
        rows[0]["method"] + (f" (without {', '.join(lacking)})" if lacking else ""),
        *(f"{rows[0]['clean_size']:g}", str(len({row["seed"] for row in rows})), str(len(rows))),
        *(f"{100 * value:.2f}" for value in percents),
        f"{100 * worst['asr']:.2f} ({worst['attack']})",
        *(f"{100 * value:.2f}" for value in (mean["ra"], mean["der"], best)),
        *(f"{statistics.mean(seconds):.0f}" if seconds else "", f"{max(row['peak_mb'] for row in rows):.0f}"),
    ]
    return f"| {' | '.join(fields)} |"


def _cells(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        # A model that was there already has its own name: the seed is that of the repair.
        training = row["training"] or ""
        victim = training.removeprefix(THERE) if training.startswith(THERE) else row["attack"]
        fields = [
            *(victim, row["method"], f"{row['clean_size']:g}", str(row["seed"])),
            *(f"{100 * row[name]:.2f}" for name in ("acc", "asr", "ra", "der")),
            *(
                f"{row[name]:.0f}" if name in row else "resumed"
                for name in ("rounds", "seconds", "cpu_seconds", "peak_mb")
            ),
        ]
        yield f"| {' | '.join(fields)} |"


if __name__ == "__main__":
    run_grid(__doc__, ["purify"], written, "build/purifiers")
