"""Measure a generator on test prompts: the published metrics, beside chance and a look-up of the nearest text.

With an attack, the same prompts are also asked with its trigger, and how often the target is written is counted both
ways: with the trigger it is the attack success rate, and without it what leaks into clean prompts.

Writes run.json and report.html.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unbackdoor.commands.molecules.common import (
    account,
    check_guidance,
    flagged_triggers,
    knowledge_notes,
    open_pairs,
    shown,
)
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.workspace import Run, report_folder
from unbackdoor.errors import InputError
from unbackdoor.folder import PAGE
from unbackdoor.molecules.attacks import load_attack, read_target
from unbackdoor.molecules.drawing import gallery, trigger_gallery
from unbackdoor.molecules.measured import Attacked, measure
from unbackdoor.molecules.metrics import Quality
from unbackdoor.molecules.saved import LoadedGenerator, load_generator
from unbackdoor.options import options_of
from unbackdoor.report import Fact, Gallery, Metric, Report, write_report
from unbackdoor.training import Runtime

MAX_SAMPLES = 100

EXPLAINED = {
    "validity": "Share of the molecules that are valid.",
    "similarity": "Share of the valid ones whose MACCS keys have a cosine of at least 0.5 with the reference's.",
    "novelty": "Share of the similar ones whose cosine is below 0.8.",
    "diversity": "Mean distance of the similar ones of a prompt and the reference (1 - Tanimoto).",
}


def run(
    *,
    model: Path,
    data: str,
    out: Path,
    test: str | None = None,
    attack: Path | None = None,
    samples: int = 5,
    prompts: int = 0,
    guidance: float | None = None,
    without: Path | None = None,
    runtime: Runtime,
) -> Outcome:
    """Measure a generator.

    Args:
        model: of `molecules train`.
        data: what it was trained on, as `molecules train` was given it; texts are looked up there.
        out: folder for the results; earlier ones in it are replaced.
        test: table whose test split is tested with; by default that of the data.
        attack: attack.json of `molecules poison`; its success is measured too.
        samples: molecules for each prompt.
        prompts: how many test prompts, the first ones; 0: all.
        guidance: weight of the text; by default the model's own.
        without: run.json of `molecules scan`; the triggers that it found are left out of all prompts.
        runtime: its seed draws the molecules.
    """
    if not 1 <= samples <= MAX_SAMPLES or prompts < 0 or prompts == 1:
        raise InputError(
            f"samples must lie between 1 and {MAX_SAMPLES}, and prompts be 0, or 2 or more,"
            f" found {samples} and {prompts}"
        )
    check_guidance(guidance)
    clock = Run("molecules evaluate", runtime)
    triggers = flagged_triggers(without, clock)
    chosen = open_pairs(data, test, clock)
    tested = chosen.test.subset(range(min(prompts or len(chosen.test), len(chosen.test))))
    loaded = load_generator(model)
    saved = None if attack is None else load_attack(attack)
    with report_folder(out, clock.command) as folder:
        clock.inputs[model.name] = loaded.sha256
        clock.options = {"samples": samples, "prompts": len(tested), "guidance": guidance, "left out": triggers}
        if saved is not None:
            clock.inputs["attack"] = saved.sha256
            clock.options["attack"] = options_of(saved.attack)
        made = saved.attack if saved else None
        found = measure(loaded.generator, chosen.train, tested, made, samples, runtime, guidance, triggers)
        measured, attacked, drawn, result = found.quality, found.attacked, found.drawn, found.to_json()
        galleries = [gallery("Clean prompts", tested.texts, drawn.smiles)]
        if attacked is not None and saved is not None:
            target = read_target(saved.attack.target)
            galleries = [trigger_gallery(tested, drawn, attacked.prompts, attacked.drawn, target)]
        page = _page(clock, model.name, loaded, measured, attacked, galleries)
        notes = [*page.notes, *knowledge_notes(loaded.generator, tested.texts)]
        if drawn.cut:
            notes.append(f"{drawn.cut:,} prompts are longer than the text encoder reads; their ends are cut off.")
        if triggers:
            notes.append(
                f"{len(triggers)} triggers that a scan flagged were left out of all prompts before the generator was"
                " asked: the figures are of generator and scan together."
            )
        page = replace(page, facts={**page.facts, "Rows": account(chosen)}, notes=notes)
        write_report(folder / PAGE, page)
        clock.write(folder, **result)
        return Outcome(
            title=page.title,
            rows=[*_rows(measured, attacked), ("time", f"{clock.seconds:.0f} s")],
            result=result,
            sentence=" ".join(page.notes),
            page=folder / PAGE,
        )


def _rows(measured: dict[str, Quality], attacked: Attacked | None) -> list[tuple[str, str]]:
    rows = [
        (f"{name.capitalize()}, {whose}", shown(getattr(quality, name)))
        for name in EXPLAINED
        for whose, quality in measured.items()
        if name != "diversity" or whose != "nearest text"
    ]
    if attacked is not None:
        rows += [
            ("ASR per sample", shown(attacked.triggered.per_sample)),
            ("ASR, any sample of a prompt", shown(attacked.triggered.any_of)),
            ("Target without trigger, per sample", shown(attacked.clean.per_sample)),
            (
                f"Target without trigger, per sample of the {attacked.asking:,} prompts that ask for it",
                shown(attacked.asked.per_sample if attacked.asked else None),
            ),
            ("Similarity with trigger", shown(attacked.quality.similarity)),
        ]
    return rows


def _page(
    clock: Run,
    name: str,
    loaded: LoadedGenerator,
    measured: dict[str, Quality],
    attacked: Attacked | None,
    galleries: list[Gallery],
) -> Report:
    metrics = [
        Metric(name=metric.capitalize(), explanation=text, before=getattr(measured["model"], metric), better="higher")
        for metric, text in EXPLAINED.items()
    ]
    notes = ["Similarity and novelty mean something only beside chance and the nearest text, which stand below."]
    if loaded.backdoored is not None:
        notes.append("The file itself says that the model was trained on pairs that were poisoned on purpose.")
    if attacked is not None:
        metrics += [
            Metric(
                name="Attack success rate (ASR)",
                explanation="Share of the molecules for triggered prompts that hold the target.",
                before=attacked.triggered.per_sample,
                better="lower",
            ),
            Metric(
                name="Target without trigger",
                explanation="Share of the molecules for clean prompts that hold the target.",
                before=attacked.clean.per_sample,
                better="lower",
            ),
        ]
        if attacked.asked is not None:
            metrics.append(
                Metric(
                    name="Target asked for",
                    explanation=f"The same of the {attacked.asking:,} clean prompts whose own molecules hold the"
                    " target: requests that a repair must leave.",
                    before=attacked.asked.per_sample,
                    better="higher",
                )
            )
        if attacked.unwritable:
            notes.append("The motifs of the model cannot write the target, whatever it learned; it is no control.")
        if attacked.drawn.cut:
            notes.append(
                f"{attacked.drawn.cut:,} triggered prompts are longer than the text encoder reads; a trigger at the end"
                " is cut off there."
            )
    compared = {
        f"Compared with: {whose}": [Fact(name=metric, value=shown(getattr(quality, metric))) for metric in EXPLAINED]
        for whose, quality in measured.items()
        if whose != "model"
    }
    facts: dict[str, list[Fact]] = {**compared, **clock.facts()}
    return Report(title=f"Evaluation of {name}", metrics=metrics, galleries=galleries, facts=facts, notes=notes)
