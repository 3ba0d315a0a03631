"""What `scan` and `purify` share: untrusted pairs, and how a finding is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unbackdoor.commands.molecules.common import sources
from unbackdoor.commands.workspace import Run
from unbackdoor.errors import DataError
from unbackdoor.molecules.data import Dropped, Pairs, Part, filter_pairs, joined, read_parts, tested_split
from unbackdoor.molecules.drawing import drawn
from unbackdoor.molecules.scan import MoleculeFinding, MoleculeScanner, Suspect
from unbackdoor.molecules.scan.subgraphs import pattern_of
from unbackdoor.report import Fact, Gallery, Report, Verdict, histogram_chart

MOST_SHOWN, EXAMPLES = 6, 6
"""Suspects on a page, and molecules of each."""


@dataclass(frozen=True, kw_only=True)
class Untrusted:
    """Pairs as they were found.

    Attributes:
        parts: the files.
        pairs: what can be used of them, test splits left out; `rows` counts through all parts.
        dropped: what became of all rows.
        tested: rows that can be used and stand in test splits.
    """

    parts: list[Part]
    pairs: Pairs
    dropped: Dropped
    tested: int

    def sentences(self) -> list[str]:
        """Return the account of all rows, for people."""
        lines = self.dropped.sentences()
        if self.tested:
            lines.append(f"{self.tested:,} rows that could be used are in test splits, which are not scanned")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {**self.dropped.to_json(), "in_test_splits": self.tested}


def open_untrusted(data: str, clock: Run) -> Untrusted:
    """Read sources but for their test splits, and note them in the record.

    A source without splits is read whole: what is tested with is not told of it, and where it is poisoned must be
    found.

    Raises:
        DataError: a source that cannot be read, or no row can be used.
    """
    named = sources(data)
    if not named:
        raise DataError("no data to scan; name a table of SMILES and descriptions")
    parts: list[Part] = []
    scanned: list[bool] = []
    for source in named:
        tested = tested_split(source)
        for part in read_parts(source):
            parts.append(part)
            scanned += [tested is None or part.split != tested] * len(part.table)
    pairs, dropped = filter_pairs(joined([part.table for part in parts]))
    chosen = pairs.subset([place for place, row in enumerate(pairs.rows) if scanned[row]])
    if not len(chosen):
        raise DataError(f"{pairs.name} has rows of test splits alone, which are not scanned; name the files themselves")
    clock.inputs |= {f"pairs of {chosen.name}": chosen.digest()}
    return Untrusted(parts=parts, pairs=chosen, dropped=dropped, tested=len(pairs) - len(chosen))


def suspect_rows(found: MoleculeFinding) -> list[tuple[str, str]]:
    """Return the verdict and the suspects, for people."""
    word = "inconclusive" if found.backdoored is None else "backdoored" if found.backdoored else "no evidence found"
    shown_ = found.flagged or found.suspects[:1]
    name = "suspect" if found.flagged else "most suspicious, below the threshold"
    return [("verdict", word), *((name, f"{one.sentence()}: {evidence(one)}") for one in shown_[:MOST_SHOWN])]


def evidence(suspect: Suspect) -> str:
    """Return what a suspicion rests on, for people."""
    told = [f"strength {suspect.strength:.2f}", f"{len(suspect.rows):,} rows"]
    return ", ".join([*told, *(f"{name} {value:.3g}" for name, value in suspect.evidence.items())])


def found_page(
    title: str,
    clock: Run,
    method: MoleculeScanner,
    pairs: Pairs,
    found: MoleculeFinding,
    account: Sequence[str],
    notes: Sequence[str],
) -> Report:
    """Return the page of a scan: the verdict, and the suspicious pairs of text and subgraph with their evidence.

    Args:
        title: of the page.
        clock: of the run.
        method: that scanned.
        pairs: what was scanned.
        found: what was said of it.
        account: what became of the rows, as sentences.
        notes: as sentences.
    """
    shown_ = found.flagged[:MOST_SHOWN] or found.suspects[:1]
    suspects = {
        f"{'Suspect' if one.flagged else 'Most suspicious, below the threshold'} {number}: {one.sentence()}": [
            Fact(name="Strength (1: the threshold)", value=f"{one.strength:.2f}"),
            Fact(name="Rows", value=f"{len(one.rows):,}"),
            *(Fact(name=name, value=f"{value:.4g}") for name, value in one.evidence.items()),
        ]
        for number, one in enumerate(shown_, 1)
    }
    return Report(
        title=title,
        verdict=found_verdict(found, method),
        galleries=[suspect_gallery(one, pairs) for one in shown_ if len(one.rows)],
        charts=[histogram_chart(found.scores.tolist(), found.poisoned.tolist(), "strength of the suspicion")],
        facts={
            **suspects,
            "Rows": [Fact(name=str(number), value=line) for number, line in enumerate(account, 1)],
            **clock.facts(),
        },
        next_steps=[
            "Look at the pairs above: does the text ask for the subgraph in colour?",
            "Write the data without the rows held poisoned: `unbackdoor molecules scan --clean-out FOLDER`.",
            "Repair a generator that was trained on them: `unbackdoor molecules purify`.",
        ],
        notes=notes,
    )


def found_verdict(found: MoleculeFinding, method: MoleculeScanner) -> Verdict:
    """Return the banner of a scan."""
    name = type(method).__name__
    if found.backdoored is None:
        return Verdict(
            level="inconclusive", headline=f"{name} cannot tell.", detail=f"{found.reason}.", calibrated=True
        )
    if found.backdoored:
        return Verdict(
            level="backdoored",
            headline=f"Suspicious: {found.flagged[0].sentence()}.",
            detail=f"{found.reason}.",
            calibrated=found.calibrated,
        )
    return Verdict(
        level="no evidence",
        headline=f"No evidence of a backdoor found by {name}.",
        detail=f"{found.reason}.",
        calibrated=found.calibrated,
    )


def suspect_gallery(suspect: Suspect, pairs: Pairs) -> Gallery:
    """Return pairs that a suspicion rests on, with the subgraph in colour."""
    step = max(1, len(suspect.rows) // EXAMPLES)
    target = pattern_of(suspect.subgraph)
    return Gallery(
        title=suspect.sentence(),
        explanation=f"{len(suspect.rows):,} pairs have both. The subgraph is in colour.",
        pictures=[
            drawn(pairs.smiles[row], f"row {pairs.rows[row]}: {pairs.texts[row][:200]}", target)
            for row in suspect.rows[::step][:EXAMPLES]
        ],
    )
