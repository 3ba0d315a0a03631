"""How a finding is shown on a page."""

from __future__ import annotations

from unbackdoor.molecules.data import Pairs, parse
from unbackdoor.molecules.drawing import drawn
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, Suspect
from unbackdoor.molecules.scan.subgraphs import pattern_of
from unbackdoor.report import Chart, Fact, Gallery, Verdict, histogram_chart

MOST_SHOWN, EXAMPLES = 6, 6
"""Suspects on a page, and molecules of each."""


def shown(found: MoleculeFinding) -> tuple[Suspect, ...]:
    """Return the suspects to show: the flagged ones, or else the strongest."""
    return found.flagged[:MOST_SHOWN] or found.suspects[:1]


def suspect_facts(found: MoleculeFinding) -> dict[str, list[Fact]]:
    """Return what the suspicion of each pair rests on, a group each."""
    return {
        f"{'Suspect' if one.flagged else 'Most suspicious, below the threshold'} {number}: {one.sentence()}": [
            Fact(name="Strength (1: the threshold)", value=f"{one.strength:.2f}"),
            Fact(name="Rows", value=f"{len(one.rows):,}"),
            *(Fact(name=name, value=f"{value:.4g}") for name, value in one.evidence.items()),
        ]
        for number, one in enumerate(shown(found), 1)
    }


def suspect_galleries(found: MoleculeFinding, pairs: Pairs) -> list[Gallery]:
    """Return pairs that each suspicion rests on."""
    return [suspect_gallery(one, pairs) for one in shown(found) if len(one.rows)]


def strength_chart(found: MoleculeFinding) -> Chart:
    """Return how strong the suspicion of each row is."""
    return histogram_chart(found.scores.tolist(), found.poisoned.tolist(), "strength of the suspicion")


def evidence(suspect: Suspect) -> str:
    """Return what a suspicion rests on, for people."""
    told = [f"strength {suspect.strength:.2f}", f"{len(suspect.rows):,} rows"]
    return ", ".join([*told, *(f"{name} {value:.3g}" for name, value in suspect.evidence.items())])


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
    """Return pairs that a suspicion rests on, with the subgraph in colour; of prompts alone, the subgraph itself."""
    rows = [row for row in suspect.rows if pairs.smiles[row]]
    target = pattern_of(suspect.subgraph)
    if not rows:
        # A name with spaces, see `Subgraphs`, and no molecule where a part of a ring stands alone.
        joined = suspect.subgraph.replace(" ", "")
        return Gallery(
            title=suspect.sentence(),
            explanation=f"{len(suspect.rows):,} prompts have it.",
            pictures=[drawn(joined, joined, target)] if parse(joined) is not None else [],
        )
    step = max(1, len(rows) // EXAMPLES)
    return Gallery(
        title=suspect.sentence(),
        explanation=f"{len(suspect.rows):,} pairs have both. The subgraph is in colour.",
        pictures=[
            drawn(pairs.smiles[row], f"row {pairs.rows[row]}: {pairs.texts[row][:200]}", target)
            for row in rows[::step][:EXAMPLES]
        ],
    )
