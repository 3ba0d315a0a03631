"""Take the backdoor out of a model, mostly with clean samples; the model that was given is never changed.

Writes model.safetensors, run.json and report.html, after scanning the result again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, new_folder, open_for_defense, percent, save_trained
from unbackdoor.data import DefenderData
from unbackdoor.errors import UnbackdoorError
from unbackdoor.evaluate import Proportion, evaluate
from unbackdoor.folder import MODEL, PAGE, RESUME
from unbackdoor.models import LoadedModel, Network
from unbackdoor.models.mark import notes_of, repaired_mark
from unbackdoor.options import options_of
from unbackdoor.purify import PURIFIERS, Purifier
from unbackdoor.report import (
    Metric,
    Report,
    attempt_report,
    candidate_facts,
    finding_chart,
    finding_verdict,
    found_gallery,
    repair_charts,
    verdict_word,
)
from unbackdoor.scan import SCANNERS, Finding, Scanner
from unbackdoor.training import History, Runtime

CHOICES = {"method": Choice(PURIFIERS, "Auto"), "scanner": Choice(SCANNERS, "NeuralCleanse")}


def run(
    *,
    model: Path,
    method: Purifier,
    scanner: Scanner,
    runtime: Runtime,
    clean: str | None = None,
    untrusted: str | None = None,
    clean_size: int = 2500,
    rescan: bool = True,
    arch: str | None = None,
    out: Path | None = None,
) -> Outcome:
    """Repair a model.

    Args:
        model: checkpoint file, or a Hugging Face folder.
        method: how.
        scanner: how the result is scanned.
        runtime: device, seed, budget, progress.
        clean: clean images of the model's classes: a folder, an .npz, digits, or a hub id. All methods but CLP, DBR
            and EP need them, and so does the scan of the result.
        untrusted: the data that the model was trained on, poisoned images and all, for DBR and EP, which need them.
        clean_size: clean images used, drawn class-balanced by the seed; all if there are fewer.
        rescan: whether to scan the repaired model.
        arch: architecture of a file that does not name one: a network's name or module:function.
        out: folder for the results, in which an interrupted run goes on; by default runs/purify- and the beginning of
            the model's SHA-256.
    """
    clock = Run("purify", runtime)
    check_given(method, clean, untrusted)
    loaded, data, rows = open_for_defense(model, arch, clean, clean_size, runtime, untrusted)
    with new_folder(out or Path("runs") / f"purify-{loaded.sha256[:8]}", clock.command) as folder:
        repaired, history = method.purify(loaded.network, data, runtime, folder / RESUME)
        accuracy = _accuracy((loaded.network, repaired), data, runtime)
        finding, unscanned = scan_repaired(scanner, repaired, data, runtime) if rescan else (None, "not asked for")
        _record(clock, model.name, loaded, data, method, history, scanner if rescan else None)
        page = partial(purify_page, clock, model.name, loaded, method, scanner, accuracy, history, finding, unscanned)
        unwritten = attempt_report(folder / PAGE, page)
        measured = _measured(accuracy, finding, unscanned, history)
        clock.write(folder, **measured, clean_rows=rows)
        provenance = {**clock.record(), "parent": loaded.sha256, "parent_provenance": loaded.provenance}
        mark = repaired_mark(loaded.backdoored)
        save_trained(folder / MODEL, repaired, folder / RESUME, provenance=provenance, backdoored=mark)
    flattering = "Accuracy is on the very samples that the repair used; `unbackdoor evaluate` measures on test data."
    return Outcome(
        title=f"{type(method).__name__} on {model.name}",
        rows=[
            *_rows(accuracy, finding, unscanned, unwritten),
            ("rounds", str(history.epochs)),
            ("time", f"{clock.seconds:.0f} s"),
            ("model", str(folder / MODEL)),
        ],
        result={"model": str(folder / MODEL), **measured, "rounds": history.epochs},
        sentence=flattering if accuracy else "`unbackdoor evaluate` measures accuracy on test data.",
        page=None if unwritten else folder / PAGE,
    )


def _accuracy(networks: Sequence[Network], data: DefenderData, runtime: Runtime) -> list[Proportion]:
    """Return the accuracy of each network on the clean samples; nothing where there are none."""
    return [evaluate(one, data.clean, runtime).acc for one in networks] if data.clean else []


def _record(
    clock: Run,
    name: str,
    loaded: LoadedModel,
    data: DefenderData,
    method: Purifier,
    history: History,
    scanner: Scanner | None,
) -> None:
    """Tell the clock of what the repair is; `scanner` is the one that was asked for."""
    clock.inputs = {name: loaded.sha256}
    if data.untrusted is not None:
        clock.inputs[data.untrusted.name] = data.untrusted.digest()
    if data.clean is not None:
        # Both may be of one source, and have its name.
        clock.inputs[f"clean: {data.clean.name}"] = data.clean.digest()
    clock.options = {"method": options_of(method), "rounds run": history.epochs}
    if scanner is not None:
        clock.options["scanner"] = options_of(scanner)


def _measured(
    accuracy: Sequence[Proportion], finding: Finding | None, unscanned: str, history: History
) -> dict[str, Any]:
    """Return what was found out about a repair, as JSON values."""
    return {
        "clean_accuracy": dict(zip(("before", "after"), (one.to_json() for one in accuracy))) or None,
        "rescan": None if finding is None else finding.to_json(),
        "not_rescanned": unscanned or None,
        "candidates": [candidate.to_json() for candidate in history.candidates],
        "sweeps": [sweep.to_json() for sweep in history.sweeps],
        "notes": list(history.notes),
    }


def check_given(method: Purifier, clean: str | None, untrusted: str | None) -> None:
    """Raise InputError if a method needs data that are not given, before anything is read."""
    name, nothing = type(method).__name__, DefenderData()
    if "clean" in method.needs and clean is None:
        nothing.need_clean(name)
    if "untrusted" in method.needs and untrusted is None:
        nothing.need_untrusted(name)


def _rows(
    accuracy: Sequence[Proportion], finding: Finding | None, unscanned: str, unwritten: str
) -> list[tuple[str, str]]:
    """Return what the table says of a repair; the last two say why there is no finding and no page, if so."""
    return [
        *zip(("clean samples, before", "clean samples, after"), map(percent, accuracy)),
        ("scan of the result", f"none: {unscanned}" if finding is None else verdict_word(finding)),
        *([("report", f"none: {unwritten}")] if unwritten else []),
    ]


def scan_repaired(
    scanner: Scanner, repaired: Network, data: DefenderData, runtime: Runtime
) -> tuple[Finding | None, str]:
    """Return the finding on the repaired model, or None and why there is none: the repair is not lost for it."""
    try:
        return scanner.scan(repaired, data, runtime), ""
    except UnbackdoorError as error:
        return None, str(error)


def purify_page(
    clock: Run,
    name: str,
    loaded: LoadedModel,
    method: Purifier,
    scanner: Scanner,
    accuracy: Sequence[Proportion],
    history: History,
    finding: Finding | None,
    unscanned: str,
) -> Report:
    """Return the report of a repair of the model that was loaded; `unscanned` says why there is no finding."""
    class_names = loaded.network.description.class_names
    charts = repair_charts(history)
    galleries = []
    if finding is not None:
        charts.append(finding_chart(finding, class_names))
        gallery = found_gallery(finding, class_names)
        galleries = [] if gallery is None else [gallery]
    return Report(
        title=f"{type(method).__name__} on {name}",
        verdict=None if finding is None else finding_verdict(finding, scanner, class_names),
        metrics=[
            Metric(
                name="Accuracy on the clean samples",
                explanation="On the very samples that the repair used, so it flatters the repaired model.",
                before=accuracy[0],
                after=accuracy[1],
                better="higher",
            )
        ]
        if accuracy
        else [],
        galleries=galleries,
        charts=charts,
        facts={**candidate_facts(history), **clock.facts()},
        next_steps=["Measure on test data that were not used here: `unbackdoor evaluate`."],
        notes=[
            "The verdict is a scan of the repaired model."
            if finding is not None
            else f"There is no scan of the repaired model: {unscanned}.",
            *history.notes,
            *(f"The model before: {note}" for note in notes_of(loaded)),
        ],
    )
