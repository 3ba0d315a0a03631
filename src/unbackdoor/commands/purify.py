"""Take the backdoor out of a model, with clean samples; the model that was given is never changed.

Writes model.safetensors, run.json and report.html, after scanning the result again.
"""

from __future__ import annotations

from pathlib import Path

from unbackdoor.commands.mark import notes_of, repaired_mark
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.pictures import found_gallery, loss_chart
from unbackdoor.commands.scan import scan_verdict, verdict_word
from unbackdoor.commands.workspace import (
    MODEL,
    PAGE,
    RESUME,
    Run,
    defender_data,
    new_folder,
    options_of,
    percent,
    save_trained,
)
from unbackdoor.evaluate import Proportion, evaluate
from unbackdoor.models import LoadedModel, load_model
from unbackdoor.purify import PURIFIERS, Purifier
from unbackdoor.report import Metric, Report, anomaly_chart, write_report
from unbackdoor.scan import SCANNERS, Finding, Scanner
from unbackdoor.training import History, Runtime

CHOICES = {"method": Choice(PURIFIERS, "SAU"), "scanner": Choice(SCANNERS, "NeuralCleanse")}


def run(
    *,
    model: Path,
    clean: str,
    out: Path,
    method: Purifier,
    scanner: Scanner,
    runtime: Runtime,
    clean_size: int = 2500,
    rescan: bool = True,
    arch: str | None = None,
) -> Outcome:
    """Repair a model.

    Args:
        model: checkpoint file, or a Hugging Face folder.
        clean: clean images of the model's classes: a folder, an .npz, digits, or a hub id.
        out: folder for the results; an interrupted run in it goes on.
        method: how.
        scanner: how the result is scanned.
        runtime: device, seed, budget, progress.
        clean_size: clean images used, drawn class-balanced by the seed; all if there are fewer.
        rescan: whether to scan the repaired model.
        arch: architecture of a file that does not name one: a network's name or module:function.
    """
    clock = Run("purify", runtime)
    loaded = load_model(model, arch=arch)
    data, rows = defender_data(clean, clean_size, loaded, runtime)
    samples = data.need_clean(type(method).__name__)
    folder = new_folder(out)
    repaired, history = method.purify(loaded.network, data, runtime, folder / RESUME)
    before = evaluate(loaded.network, samples, runtime).acc
    after = evaluate(repaired, samples, runtime).acc
    finding = scanner.scan(repaired, data, runtime) if rescan else None
    clock.inputs = {model.name: loaded.sha256, samples.name: samples.digest()}
    clock.options = {"method": options_of(method), "rounds run": history.epochs}
    page = purify_page(clock, model.name, loaded, method, scanner, (before, after), history, finding)
    write_report(folder / PAGE, page)
    measured = {
        "clean_accuracy": {"before": before.to_json(), "after": after.to_json()},
        "rescan": None if finding is None else finding.to_json(),
    }
    clock.write(folder, **measured, clean_rows=rows)
    provenance = {**clock.record(), "parent": loaded.sha256, "parent_provenance": loaded.provenance}
    mark = repaired_mark(loaded.backdoored)
    save_trained(folder / MODEL, repaired, folder / RESUME, provenance=provenance, backdoored=mark)
    return Outcome(
        title=f"{type(method).__name__} on {model.name}",
        rows=[
            ("clean samples, before", percent(before)),
            ("clean samples, after", percent(after)),
            ("scan of the result", "not done" if finding is None else verdict_word(finding)),
            ("rounds", str(history.epochs)),
            ("time", f"{clock.seconds:.0f} s"),
            ("model", str(folder / MODEL)),
        ],
        result={"model": str(folder / MODEL), **measured, "rounds": history.epochs},
        sentence="Accuracy is on the very samples that the repair used; `unbackdoor evaluate` measures on test data.",
        page=folder / PAGE,
    )


def purify_page(
    clock: Run,
    name: str,
    loaded: LoadedModel,
    method: Purifier,
    scanner: Scanner,
    accuracy: tuple[Proportion, Proportion],
    history: History,
    finding: Finding | None,
) -> Report:
    """Return the report of a repair of the model that was loaded."""
    class_names = loaded.network.description.class_names
    before, after = accuracy
    charts = [loss_chart(history, "round", "loss")]
    galleries = []
    if finding is not None:
        charts.append(anomaly_chart(class_names, finding.anomaly.tolist(), finding.threshold, list(finding.suspected)))
        gallery = found_gallery(finding, class_names)
        galleries = [] if gallery is None else [gallery]
    return Report(
        title=f"{type(method).__name__} on {name}",
        verdict=None if finding is None else scan_verdict(finding, scanner, class_names),
        metrics=[
            Metric(
                name="Accuracy on the clean samples",
                explanation="On the very samples that the repair used, so it flatters the repaired model.",
                before=before,
                after=after,
                better="higher",
            )
        ],
        galleries=galleries,
        charts=charts,
        facts=clock.facts(),
        next_steps=["Measure on test data that were not used here: `unbackdoor evaluate`."],
        notes=[
            *(["The verdict is a scan of the repaired model."] if finding is not None else []),
            *(f"The model before: {note}" for note in notes_of(loaded)),
        ],
    )
