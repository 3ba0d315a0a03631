"""The data of a leaderboard's page: short, since a board has hundreds of thousands of figures, and harmless."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import InputError
from unbackdoor.report.text import shown

if TYPE_CHECKING:
    from unbackdoor.report.leaderboard import (
        Curve,
        Estimate,
        Filter,
        Kind,
        Leaderboard,
        Row,
        ScannerRow,
        Selection,
        Standing,
    )

METRICS = ("der", "asr", "acc", "ra")
"""The order of a row's and a point's figures; the page's script has the same."""

TRAINED = ("der", "acc", "asr", "ra", "mse_clean", "mse_triggered")
SIFTED = ("auroc", "tpr_at_1", "tpr", "fpr", "clean")
"""The order of the figures of secure trainers and of sifters; the page's script has the same."""

FIGURES: Mapping[Kind, tuple[str, ...]] = {"methods": METRICS, "trainers": TRAINED, "sifters": SIFTED}
"""Those of a curve's points, by the kind of its method."""

SHARES = frozenset({*METRICS, "auroc", "tpr", "fpr", "held"})
"""Words by which columns of fractions are known."""

DECIMALS = 6
"""Of all numbers: two more than a percentage with two decimals needs."""

# What could end the data or begin markup. JSON's own escapes take care of all but ASCII, U+2028 and U+2029 too.
_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"}


class _Numbers(dict[str, int]):
    """The numbers of names, in the order in which they are first asked for."""

    def __missing__(self, name: str) -> int:
        return self.setdefault(name, len(self))


def packed(board: Leaderboard) -> str:
    """Return the board as JSON that may stand in a page: lists instead of fields, numbers instead of methods.

    Raises:
        InputError: as for `render_leaderboard`.
    """
    if any(len(cell) != len(board.columns) for cell in board.cells):
        raise InputError(f"every cell of the board needs one value for each of the columns {list(board.columns)}")
    methods = _Numbers()
    # Before the methods are listed: this gives them their numbers.
    selections = {
        _key(choice, board.filters): _selection(selection, board.attacks, methods)
        for choice, selection in board.selections.items()
    }
    content = {
        "title": board.title,
        "notes": board.notes,
        "filters": [[axis.name, axis.title, axis.values, _column(axis, board.columns)] for axis in board.filters],
        "attacks": board.attacks,
        "methods": list(methods),
        "selections": selections,
        "columns": [[column, _kind(column)] for column in board.columns],
        "cells": board.cells,
        "facts": [[title, [[fact.name, fact.value] for fact in facts]] for title, facts in board.facts.items()],
    }
    return json.dumps(_cleaned(content), separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def _key(choice: tuple[str, ...], filters: Sequence[Filter]) -> str:
    """Return the places of the chosen values among their filters' values: 0 for all, 1 for the first."""
    places = [["", *axis.values].index(value) for value, axis in zip(choice, filters) if value in {"", *axis.values}]
    if not len(places) == len(choice) == len(filters):
        names = [axis.name for axis in filters]
        raise InputError(f"the choice {choice} needs one of the values, or '' for all, of each of the filters {names}")
    return ",".join(map(str, places))


def _column(axis: Filter, columns: Sequence[str]) -> int:
    names = {axis.name.casefold(), axis.title.casefold()}
    for place, column in enumerate(columns):
        if column.casefold() in names:
            return place
    raise InputError(f"the filter {axis.name!r} needs a column of that name, the cells have {list(columns)}")


def _kind(column: str) -> str:
    words = set(re.findall("[a-z]+", column.lower()))
    return "share" if words & SHARES else "whole" if words & {"seconds", "mb"} else "plain"


def _selection(selection: Selection, attacks: Sequence[str], methods: _Numbers) -> list[Any]:
    rows: tuple[Row | Standing | ScannerRow, ...] = (
        *selection.methods,
        *selection.trainers,
        *selection.sifters,
        *selection.scanners,
    )
    if unknown := {attack for row in rows for attack in row.attacks}.difference(attacks):
        raise InputError(f"the board's attacks {list(attacks)} lack {sorted(unknown)}, which a method has figures for")
    repairs = [_row(row, _means(row, selection.methods), attacks, methods) for row in selection.methods]
    scanners = [_scanner(row, attacks, methods) for row in selection.scanners]
    trainers = [_standing(row, TRAINED, attacks, methods) for row in selection.trainers]
    sifters = [_standing(row, SIFTED, attacks, methods) for row in selection.sifters]
    curves = [_curve(curve, methods) for curve in selection.curves]
    return [selection.blocks, repairs, scanners, curves, trainers, sifters]


def _row(row: Row, means: list[float | None], attacks: Sequence[str], methods: _Numbers) -> list[Any]:
    figures = map(_estimate, (row.der, row.rank, row.acc, row.asr, row.ra))
    by_attack = [
        [_estimate(row.attacks[attack].get(metric)) for metric in METRICS] if attack in row.attacks else None
        for attack in attacks
    ]
    return [methods[row.method], row.blocks, *figures, row.seconds, row.peak_mb, means, by_attack, row.peak_gpu_mb]


def _standing(row: Standing, names: Sequence[str], attacks: Sequence[str], methods: _Numbers) -> list[Any]:
    def figures(found: Mapping[str, Estimate]) -> list[Any]:
        return [_estimate(found.get(name)) for name in names]

    by_attack = [figures(row.attacks[attack]) if attack in row.attacks else None for attack in attacks]
    place = [methods[row.method], row.blocks, row.of, row.complete, _estimate(row.rank)]
    return [*place, row.seconds, row.peak_mb, figures(row.figures), by_attack, row.peak_gpu_mb]


def _curve(curve: Curve, methods: _Numbers) -> list[Any]:
    points = [[x, *map(figures.get, FIGURES[curve.kind])] for x, figures in curve.points]
    return [curve.kind, curve.axis, methods[curve.method], curve.settings, points]


def _scanner(row: ScannerRow, attacks: Sequence[str], methods: _Numbers) -> list[Any]:
    backdoored = [row.backdoored, row.flagged, row.targeted, row.target_first]
    counts = [*backdoored, row.clean, row.false_alarms, row.inconclusive]
    by_attack = [row.attacks.get(attack) for attack in attacks]
    return [methods[row.method], *counts, row.seconds, row.peak_mb, by_attack, row.peak_gpu_mb]


def _estimate(estimate: Estimate | None) -> float | list[float] | None:
    """Return the value and the ends of its interval, or the value alone where it has not both."""
    if estimate is None:
        return None
    parts = (estimate.value, estimate.low, estimate.high)
    known = [part for part in parts if part is not None and math.isfinite(part)]
    return known if len(known) == len(parts) else estimate.value


def _means(row: Row, rows: Sequence[Row]) -> list[float | None]:
    """Return the mean over the attacks of each metric; None where others were measured on more attacks."""
    means: list[float | None] = []
    for metric in METRICS:
        measured = {attack for other in rows for attack in other.attacks if metric in other.attacks[attack]}
        figures = [row.attacks[attack][metric].value for attack in measured if metric in row.attacks.get(attack, {})]
        means.append(fmean(figures) if figures and len(figures) == len(measured) else None)
    return means


def _cleaned(content: Any) -> Any:
    """Return `content` with every string cleaned, every number rounded, and None for what is not finite."""
    clean = functools.cache(shown)

    def walk(part: Any) -> Any:
        match part:
            case str():
                return clean(part)
            case float():
                return round(part, DECIMALS) if math.isfinite(part) else None
            case dict():
                return {name: walk(value) for name, value in part.items()}
            case list() | tuple():
                return [walk(value) for value in part]
        return part

    return walk(content)
