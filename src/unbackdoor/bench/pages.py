"""The page of each cell of image classifiers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.attacks import FittedAttack, SavedAttack
from unbackdoor.attacks.mesa_patch import Scattered
from unbackdoor.data import ImageSet
from unbackdoor.detection import Detection
from unbackdoor.evaluate import Evaluation
from unbackdoor.reconstruction import Reconstruction
from unbackdoor.report import (
    Fact,
    Report,
    attempt_report,
    candidate_facts,
    distribution_chart,
    distribution_gallery,
    evaluation_metrics,
    finding_chart,
    finding_verdict,
    found_gallery,
    loss_chart,
    repair_charts,
    suspicion_chart,
    suspicion_verdict,
    suspicious_galleries,
    trigger_gallery,
)
from unbackdoor.scan import Finding, Scanner
from unbackdoor.sift import Sifter, Suspicion
from unbackdoor.training import History, Runtime

logger = logging.getLogger(__name__)

Made = FittedAttack | SavedAttack


def victim_page(
    title: str,
    test: ImageSet,
    attack: Made | None,
    evaluation: Evaluation,
    history: History | None,
    facts: Mapping[str, list[Fact]],
) -> Report:
    """Return the page of a victim; without an attack it is a clean model, without a history it was given."""
    return Report(
        title=title,
        metrics=evaluation_metrics(evaluation, None),
        galleries=[trigger_gallery(test, attack.trigger, attack.criterion)] if attack else [],
        charts=[loss_chart(history, "epoch", "training loss")] if history else [],
        facts=facts,
    )


def repair_page(
    title: str, before: Evaluation, after: Evaluation, history: History, facts: Mapping[str, list[Fact]]
) -> Report:
    """Return the page of a repair."""
    return Report(
        title=title,
        metrics=evaluation_metrics(before, after),
        charts=repair_charts(history),
        facts={**candidate_facts(history), **facts},
        notes=list(history.notes),
    )


TRUTHS = {
    True: "The model is backdoored.",
    False: "The model is not backdoored.",
    None: "Whether the model is backdoored cannot be said: its attack is not there, or hardly works.",
}


def scan_page(
    title: str,
    scanner: Scanner,
    finding: Finding,
    names: tuple[str, ...],
    attack: Made | None,
    truth: bool | None,
    facts: Mapping[str, list[Fact]],
) -> Report:
    """Return the page of a scan, with the true trigger beside the one that was found, and the truth if it is known."""
    gallery = found_gallery(finding, names, attack.trigger if attack else None)
    learned = finding.distributions
    original = attack.trigger.pattern if attack and isinstance(attack.trigger, Scattered) else None
    return Report(
        title=title,
        verdict=finding_verdict(finding, scanner, names),
        galleries=[
            *([gallery] if gallery else []),
            *([distribution_gallery(learned, names)] if learned else []),
        ],
        charts=[
            finding_chart(finding, names),
            *(distribution_chart(one, names[one.target], original) for one in learned[:1]),
        ],
        facts=facts,
        notes=[TRUTHS[truth]],
    )


def poison_page(
    title: str, test: ImageSet, attack: Made | None, counts: Mapping[str, float], facts: Mapping[str, list[Fact]]
) -> Report:
    """Return the page of poisoned data: what the trigger does, and how many rows have it; without an attack, none."""
    told = {"poisoned_rows": "poisoned rows", "covers": "rows with the trigger and their true label (covers)"}
    rows = [Fact(name=words, value=f"{counts[name]:.0f}") for name, words in told.items()]
    return Report(
        title=title,
        galleries=[trigger_gallery(test, attack.trigger, attack.criterion)] if attack else [],
        facts={"What was poisoned": rows, **facts},
    )


def quick_page(title: str, facts: Mapping[str, list[Fact]]) -> Report:
    """Return the page of the quick model, which nobody measures: sifters look into it."""
    return Report(title=title, facts=facts, notes=["A model of the poisoned data that several sifters share."])


def sift_page(
    title: str,
    sifter: Sifter,
    found: Suspicion,
    rows: ImageSet,
    measures: Detection,
    facts: Mapping[str, list[Fact]],
) -> Report:
    """Return the page of a sifting, with how well it did."""
    told = {"held": "rows held poisoned", "fpr": "clean rows held poisoned", "tpr": "poisoned rows held poisoned"}
    told |= {"auroc": "AUROC", "tpr_at_1": "poisoned rows found at 1 % false alarms"}
    values = measures.to_metrics()
    judged = [Fact(name=words, value=_percent(values, name)) for name, words in told.items() if name in values]
    return Report(
        title=title,
        verdict=suspicion_verdict(found, sifter),
        galleries=suspicious_galleries(found, rows),
        charts=[suspicion_chart(found)],
        facts={"How well it did": judged, **facts},
    )


def trained_page(
    title: str,
    evaluation: Evaluation,
    history: History,
    rebuilt: Reconstruction | None,
    facts: Mapping[str, list[Fact]],
) -> Report:
    """Return the page of a secure training."""
    means = {"clean": rebuilt.clean, "triggered": rebuilt.triggered} if rebuilt else {}
    errors = [
        Fact(name=f"MSE, {name} images", value=f"{mean.value:.5f} [{mean.low:.5f}, {mean.high:.5f}]")
        for name, mean in means.items()
        if mean is not None
    ]
    return Report(
        title=title,
        metrics=evaluation_metrics(evaluation, None),
        charts=[loss_chart(history, "epoch", "training loss")] if history.loss else [],
        facts={**({"Reconstruction error of the decoder": errors} if errors else {}), **facts},
        notes=list(history.notes),
    )


def _percent(values: Mapping[str, float], name: str) -> str:
    value, low, high = (100 * values[end] for end in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.2f} % [{low:.2f}, {high:.2f}]"


def written_page(path: Path, page: Callable[[], Report]) -> dict[str, Path]:
    """Make and write a page; return its file by its name, or nothing (see `attempt_report`)."""
    if why := attempt_report(path, page):
        logger.warning("there is no page: %s", why)
        return {}
    return {path.name: path}


def facts(runtime: Runtime, **groups: Mapping[str, Any]) -> dict[str, list[Fact]]:
    """Return what was run, in groups, and on what it ran."""
    named = {name.capitalize().replace("_", " "): values for name, values in groups.items()}
    return {name: _facts(values) for name, values in {**named, "What was run": runtime.describe()}.items()}


def _facts(values: Mapping[str, Any]) -> list[Fact]:
    return [Fact(name=name, value=str(value)) for name, value in values.items()]
