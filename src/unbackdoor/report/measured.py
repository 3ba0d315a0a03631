"""What an evaluation and a training measured, as a page shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unbackdoor.evaluate import Evaluation
from unbackdoor.report.charts import curve_chart
from unbackdoor.report.content import Chart, Fact, Metric
from unbackdoor.training import History


def evaluation_metrics(before: Evaluation | None, after: Evaluation | None) -> list[Metric]:
    """Return the metrics of a page; either evaluation may be missing."""
    rows: list[Metric] = []
    for field, name, explanation in (
        ("acc", "Accuracy (ACC)", "Share of clean test images that get their true class."),
        ("asr", "Attack success rate (ASR)", "Share of triggered test images that get the attacker's class."),
        (
            "asr_unrounded",
            "ASR without rounding",
            "The same, had the triggered images not been rounded to 8 bits as files are.",
        ),
        ("ra", "Robust accuracy (RA)", "Share of the same triggered images that get their true class."),
    ):
        old = None if before is None else getattr(before, field)
        new = None if after is None else getattr(after, field)
        if old is not None or new is not None:
            better: Any = "lower" if field.startswith("asr") else "higher"
            rows.append(Metric(name=name, explanation=explanation, before=old, after=new, better=better))
    return rows


def loss_chart(history: History, unit: str, name: str) -> Chart:
    """Return the mean loss over the epochs of a run, called `name` and counted in `unit`."""
    return curve_chart(range(1, len(history.loss) + 1), history.loss, unit, name)


def repair_charts(history: History) -> list[Chart]:
    """Return the loss over the rounds of a repair, if it has any, and what it chose by clean samples."""
    charts = [loss_chart(history, "round", "loss")] if history.loss else []
    for sweep in history.sweeps:
        chart = curve_chart(sweep.values, sweep.accuracy, sweep.name, "accuracy on held-out clean samples")
        charts.append(replace(chart, explanation=f"Chosen: {sweep.chosen:g}. {sweep.rule}"))
    return charts


def candidate_facts(history: History) -> dict[str, list[Fact]]:
    """Return what speaks for each of the models that a repair chose from, in groups; nothing if it had no choice."""
    groups = {}
    for one in history.candidates:
        measured = {"accuracy on held-out clean samples": one.accuracy, **one.evidence}
        title = f"Candidate: {one.name}{' (chosen)' if one.chosen else ''}"
        groups[title] = [Fact(name=name, value=f"{100 * share:.1f} %") for name, share in measured.items()]
    return groups
