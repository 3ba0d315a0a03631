"""Look into a model: `unbackdoor inspect weights --model FILE --clean DATA`.

For those who study backdoors. Other than a defence, an inspection may know the attack; it gives no verdict.
"""

from __future__ import annotations

from pathlib import Path

from unbackdoor.attacks import SavedAttack, load_attack
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, new_folder, open_beside, open_for_defense, remove_states
from unbackdoor.folder import ATTACK, PAGE, RESUME
from unbackdoor.inspect import INSPECTIONS, Insight, Inspection, Material
from unbackdoor.models import LoadedModel
from unbackdoor.models.mark import notes_of
from unbackdoor.options import options_of
from unbackdoor.report import Report, insight_charts, insight_facts, insight_verdict, write_report
from unbackdoor.training import Runtime, check_fits

CHOICES = {"inspection": Choice(INSPECTIONS, "Weights", leading=True)}


def run(
    *,
    model: Path,
    clean: str,
    inspection: Inspection,
    runtime: Runtime,
    attack: Path | None = None,
    reference: Path | None = None,
    clean_size: int = 2500,
    arch: str | None = None,
    out: Path | None = None,
) -> Outcome:
    """Inspect a model.

    Args:
        model: checkpoint file, or a Hugging Face folder.
        clean: clean images of the model's classes: a folder, an .npz, digits, or a hub id.
        inspection: what is looked at.
        runtime: device, seed, budget, progress.
        attack: folder that `unbackdoor attack` made, or an attack's file; what only the attacker knows is shown then.
        reference: a clean model of the same task, to compare with.
        clean_size: clean images used, drawn class-balanced by the seed; all if there are fewer.
        arch: architecture of a file that does not name one: a network's name or module:function.
        out: folder for the report, in which an interrupted run goes on, replaced if it is an inspection's; by default
            runs/inspect-, the inspection, and the beginning of the model's SHA-256.
    """
    clock = Run("inspect", runtime)
    what = type(inspection).__name__
    loaded, data, rows = open_for_defense(model, arch, clean, clean_size, runtime)
    samples = data.need_clean(what)
    clock.inputs = {model.name: loaded.sha256, samples.name: samples.digest()}
    clock.options = {"inspection": options_of(inspection)}
    saved = other = None
    if attack is not None:
        saved = _attack(attack, loaded)
        clock.inputs[f"attack {attack.name}"] = saved.sha256
        clock.options["attack"] = saved.options
    if reference is not None:
        other = open_beside(reference, arch)
        check_fits(other.network, samples)
        clock.inputs[f"reference {reference.name}"] = other.sha256
    with new_folder(out or Path("runs") / f"inspect-{what.lower()}-{loaded.sha256[:8]}", clock.command) as folder:
        material = Material(clean=samples, attack=saved, reference=None if other is None else other.network)
        insight = inspection.inspect(loaded.network, material, runtime, folder / RESUME)
        write_report(folder / PAGE, inspect_page(clock, f"{what} of {model.name}", loaded, other, insight))
        clock.write(folder, **insight.measured, **insight.details, notes=list(insight.notes), clean_rows=rows)
        remove_states(folder / RESUME)
    return Outcome(
        title=f"{what} of {model.name}",
        rows=[*insight.rows, ("time", f"{clock.seconds:.0f} s")],
        result={"model_sha256": loaded.sha256, **insight.measured, "notes": list(insight.notes)},
        sentence=" ".join(filter(None, [insight.headline, insight.detail])),
        page=folder / PAGE,
    )


def _attack(path: Path, model: LoadedModel) -> SavedAttack:
    """Return the attack in the folder, or in the file.

    Raises:
        InputError: there is none, or it was made for other images or classes than the model.
    """
    saved = load_attack(path / ATTACK if path.is_dir() else path)
    saved.check_fits(model.network.description.image_shape, model.network.classes, path)
    return saved


def inspect_page(
    clock: Run, title: str, loaded: LoadedModel, reference: LoadedModel | None, insight: Insight
) -> Report:
    """Return the report of an inspection."""
    return Report(
        title=title,
        verdict=insight_verdict(insight),
        charts=insight_charts(insight),
        facts={**insight_facts(insight), **clock.facts()},
        notes=[
            "This page shows what a model is like, not whether it is backdoored: `unbackdoor scan` asks that.",
            *insight.notes,
            *notes_of(loaded),
            *(f"The reference: {note}" for note in (notes_of(reference) if reference else ())),
        ],
    )
