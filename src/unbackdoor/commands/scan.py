"""Ask whether a model is backdoored, from the model and clean samples alone.

If no scanner is named it is Verdict where a calibration table of the package fits the model, and elsewhere
NeuralCleanse.

Exit code 1 if it is, 0 if no evidence was found, 3 if the scan is inconclusive.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from unbackdoor.commands.outcome import BACKDOORED, INCONCLUSIVE, NO_EVIDENCE, Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, open_for_defense, report_folder
from unbackdoor.folder import PAGE
from unbackdoor.models import LoadedModel
from unbackdoor.models.mark import is_repaired, mark_sentence, notes_of
from unbackdoor.options import options_of
from unbackdoor.report import (
    Fact,
    Report,
    calibration_rows,
    distribution_chart,
    distribution_gallery,
    finding_chart,
    finding_verdict,
    found_gallery,
    said_rows,
    trigger_rows,
    verdict_word,
    write_report,
)
from unbackdoor.scan import SCANNERS, Finding, Scanner, default_scanner
from unbackdoor.training import Runtime

CHOICES = {"scanner": Choice(SCANNERS, None)}
FEW_IMAGES, CUT_SHORT, PRECISION = "clean images", "the budget", "a precision of"
"""Words of the misfits that more clean images, or more time, would mend (see `Table.misfits` and `Verdict`)."""


def run(
    *,
    model: Path,
    clean: str | None = None,
    scanner: Scanner | None = None,
    runtime: Runtime,
    clean_size: int = 2500,
    arch: str | None = None,
    out: Path | None = None,
) -> Outcome:
    """Scan a model.

    Args:
        model: checkpoint file, or a Hugging Face folder.
        clean: clean images of the model's classes: a folder, an .npz, digits, or a hub id; WeightStatistics alone looks
            at nothing but the model, and needs none.
        scanner: how; the one that suits the model if none is named, see `default_scanner`.
        runtime: device, seed, budget, progress.
        clean_size: clean images used, drawn class-balanced by the seed; all if there are fewer.
        arch: architecture of a file that does not name one: a network's name or module:function.
        out: folder for the report, replaced if it is a scan's; by default runs/scan- and the beginning of the model's
            SHA-256.
    """
    clock = Run("scan", runtime)
    loaded, data, rows = open_for_defense(model, arch, clean, clean_size, runtime)
    with report_folder(out or Path("runs") / f"scan-{loaded.sha256[:8]}", clock.command) as folder:
        scanner = scanner or default_scanner(loaded.network, data, runtime)
        finding = scanner.scan(loaded.network, data, runtime)
        clock.inputs = {model.name: loaded.sha256}
        if data.clean is not None:
            clock.inputs[data.clean.name] = data.clean.digest()
        clock.options = {"scanner": options_of(scanner)}
        write_report(folder / PAGE, scan_page(clock, model.name, loaded, scanner, finding))
        clock.write(folder, finding=finding.to_json(), clean_rows=rows)
        names = loaded.network.description.class_names
        mark = mark_sentence(loaded)
        return Outcome(
            code=exit_code(finding),
            title=f"scan of {model.name} by {type(scanner).__name__}",
            rows=[
                *([("mark", mark)] if mark else []),
                ("verdict", verdict_word(finding)),
                *calibration_rows(finding),
                *search_rows(finding),
                ("suspected", ", ".join(f"{c} ({names[c]})" for c in finding.suspected) or "no class"),
                *trigger_rows(finding, loaded.network.description.image_shape),
                ("largest anomaly", f"{float(finding.anomaly.max()):.2f} (threshold {finding.threshold:.4g})"),
                *said_rows(finding),
                ("time", f"{clock.seconds:.0f} s"),
                ("next", next_steps(finding, model.name)[0]),
            ],
            result={
                "scanner": type(scanner).__name__,
                "model_sha256": loaded.sha256,
                "marked": loaded.backdoored is not None,
                "marked_repaired": is_repaired(loaded),
                "seconds": {"all": clock.seconds, **finding.seconds},
                **finding.to_json(),
            },
            sentence=finding.reason,
            page=folder / PAGE,
        )


def exit_code(finding: Finding) -> int:
    """Return the exit code of a finding."""
    if finding.backdoored is None:
        return INCONCLUSIVE
    return BACKDOORED if finding.backdoored else NO_EVIDENCE


def scan_page(clock: Run, name: str, loaded: LoadedModel, scanner: Scanner, finding: Finding) -> Report:
    """Return the report of a scan."""
    names = loaded.network.description.class_names
    gallery = found_gallery(finding, names)
    learned = finding.distributions
    return Report(
        title=f"Scan of {name}",
        verdict=finding_verdict(finding, scanner, names),
        galleries=[
            *([] if gallery is None else [gallery]),
            *([distribution_gallery(learned, names)] if learned else []),
        ],
        charts=[
            finding_chart(finding, names),
            *(distribution_chart(one, names[one.target]) for one in learned[:1]),
        ],
        facts={**said_facts(finding), **clock.facts()},
        next_steps=next_steps(finding, name),
        notes=notes_of(loaded),
    )


def search_rows(finding: Finding) -> list[tuple[str, str]]:
    """Return that a budget cut a search short, if it did."""
    if not finding.shortened:
        return []
    return [("search", "cut short by the budget: its numbers are not those of the full one")]


def said_facts(finding: Finding) -> dict[str, list[Fact]]:
    """Return what stands behind the verdict, as groups for the page."""
    sure = [*calibration_rows(finding), *search_rows(finding)]
    groups = {"How sure": sure, "What each scanner said": said_rows(finding)}
    return {title: [Fact(name=name, value=value) for name, value in rows] for title, rows in groups.items() if rows}


def next_steps(finding: Finding, name: str) -> list[str]:
    """Return what to do now, the first thing first."""
    if finding.backdoored:
        return [
            f"Do not use it as it is; repair it: `unbackdoor purify --model {shlex.quote(name)} --clean DATA --out"
            " repaired`, then scan the result.",
            "Look at the trigger that was found: does it look like a mark, or like the class itself?",
            "Ask where the model and its training data come from.",
        ]
    if finding.backdoored is None:
        return undecided_steps(finding)
    return [
        "Scan again with another --seed, or other clean images, to see whether the answer holds; no scanner sees every"
        " backdoor.",
        "Ask where the model and its training data come from.",
    ]


def undecided_steps(finding: Finding) -> list[str]:
    """Return what may bring an answer after an inconclusive scan, by what it lacked, the first thing first."""
    misfits: list[str] = finding.evidence.get("calibration", {}).get("misfits", [])
    few = [misfit for misfit in misfits if FEW_IMAGES in misfit]
    # Neither more images nor more time helps where there is no table for such a model.
    precision = [misfit for misfit in misfits if misfit.startswith(PRECISION)]
    other = [misfit for misfit in misfits if misfit not in (*few, *precision) and CUT_SHORT not in misfit]
    steps = []
    if other:
        steps.append(
            f"No calibration table covers this scan, which has {', '.join(other)}: name one from a zoo of such models"
            " (`unbackdoor zoo`) by `--scanner.table`, or ask a scanner that needs none, such as `--scanner"
            " NeuralCleanse`, whose answer is not calibrated."
        )
    if precision:
        steps.append(f"Scan again with the table's --precision: this scan has {', '.join(precision)}.")
    if few:
        steps.append(f"Scan again with more clean images: this scan has {', '.join(few)}.")
    if finding.shortened:
        steps.append("Scan again with a larger --budget, or without one: it cut the search short.")
    return steps or ["Scan again as the sentence of the verdict says, or choose another scanner by `--scanner`."]
