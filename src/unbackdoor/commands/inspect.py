"""Look into a model: `unbackdoor inspect --model FILE --clean DATA`, or `unbackdoor inspect NAME` for one inspection.

For those who study backdoors. Other than a defence, an inspection may know the attack; it gives no verdict. Without a
name, all inspections that take no minutes stand on one page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, new_folder, open_attack, open_beside, open_for_defense, remove_states
from unbackdoor.errors import UnsuitedError
from unbackdoor.folder import PAGE, RESUME
from unbackdoor.inspect import INSPECTIONS, Insight, Inspection, Material
from unbackdoor.models import LoadedModel
from unbackdoor.models.mark import notes_of
from unbackdoor.options import options_of
from unbackdoor.report import Report, insight_facts, insight_section, write_report
from unbackdoor.training import Runtime, check_fits, stage

CHOICES = {"inspection": Choice(INSPECTIONS, None, leading=True)}

NO_VERDICT = "shows what a model is like, not whether it is backdoored: `unbackdoor scan` asks that."


class Seen(NamedTuple):
    """What inspections saw, by their names, and why those that the network is not for saw nothing."""

    insights: Mapping[str, Insight]
    unsuited: Mapping[str, str]

    def measured(self) -> dict[str, Any]:
        """Return the figures for programs."""
        return {**{name: one.measured for name, one in self.insights.items()}, "unsuited": dict(self.unsuited)}

    def rows(self) -> list[tuple[str, str]]:
        """Return a row for people on each."""
        return [
            *((_title(name), one.headline) for name, one in self.insights.items()),
            *((_title(name), f"none: {why}") for name, why in self.unsuited.items()),
        ]


def _title(name: str) -> str:
    return INSPECTIONS[name].title or name


def run(
    *,
    model: Path,
    clean: str,
    runtime: Runtime,
    inspection: Inspection | None = None,
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
        runtime: device, seed, budget, progress.
        inspection: what is looked at; all that takes no minutes if none is named.
        attack: folder that `unbackdoor attack` made, or an attack's file; what only the attacker knows is shown then.
        reference: a model of the same task to compare with: a clean one, or the same model after a repair.
        clean_size: clean images used, drawn class-balanced by the seed; all if there are fewer.
        arch: architecture of a file that does not name one: a network's name or module:function.
        out: folder for the report, in which an interrupted run goes on, replaced if it is an inspection's; by default
            runs/inspect-, the inspection, and the beginning of the model's SHA-256.
    """
    clock = Run("inspect", runtime)
    what = "all" if inspection is None else type(inspection).__name__
    looks = {type(one).__name__: one for one in ([inspection] if inspection else _quick())}
    loaded, data, rows = open_for_defense(model, arch, clean, clean_size, runtime)
    samples = data.need_clean("an inspection" if inspection is None else what)
    clock.inputs = {model.name: loaded.sha256, samples.name: samples.digest()}
    clock.options = {"inspection": options_of(inspection) if inspection else _options(looks)}
    saved = other = None
    if attack is not None:
        saved = open_attack(attack, loaded)
        clock.inputs[f"attack {attack.name}"] = saved.sha256
        clock.options["attack"] = saved.options
    if reference is not None:
        other = open_beside(reference, arch)
        check_fits(other.network, samples)
        clock.inputs[f"reference {reference.name}"] = other.sha256
    material = Material(clean=samples, attack=saved, reference=None if other is None else other.network)
    title = f"Inspection of {model.name}" if inspection is None else f"{what} of {model.name}"
    with new_folder(out or Path("runs") / f"inspect-{what.lower()}-{loaded.sha256[:8]}", clock.command) as folder:
        if inspection is not None:
            seen = Seen({what: inspection.inspect(loaded.network, material, runtime, folder / RESUME)}, {})
        else:
            seen = _all_of(looks, loaded, material, runtime, folder)
        write_report(folder / PAGE, inspect_page(clock, title, loaded, other, seen))
        measured = seen.insights[what].measured if inspection else seen.measured()
        details = {key: value for insight in seen.insights.values() for key, value in insight.details.items()}
        notes = [note for insight in seen.insights.values() for note in insight.notes]
        clock.write(folder, **measured, **details, notes=notes, clean_rows=rows)
        remove_states(folder / RESUME)
    return Outcome(
        title=title,
        rows=[*(seen.insights[what].rows if inspection else seen.rows()), ("time", f"{clock.seconds:.0f} s")],
        result={"model_sha256": loaded.sha256, **measured, "notes": notes},
        sentence=_sentence(seen.insights[what]) if inspection else f"This {NO_VERDICT}",
        page=folder / PAGE,
    )


def _quick() -> list[Inspection]:
    return [kind() for kind in INSPECTIONS.values() if not kind.slow]


def _options(looks: Mapping[str, Inspection]) -> dict[str, dict[str, Any]]:
    """Return the options of each inspection, by its name."""
    return {
        name: {option: value for option, value in options_of(one).items() if option != "name"}
        for name, one in looks.items()
    }


def _all_of(
    looks: Mapping[str, Inspection], loaded: LoadedModel, material: Material, runtime: Runtime, folder: Path
) -> Seen:
    """Return what the inspections see; one that the network is not for is left out, and the reason kept."""
    insights: dict[str, Insight] = {}
    unsuited: dict[str, str] = {}
    for name, one in looks.items():
        try:
            insights[name] = one.inspect(
                loaded.network, material, runtime.part(1 / len(looks)), stage(folder / RESUME, name)
            )
        except UnsuitedError as error:
            unsuited[name] = str(error)
    return Seen(insights, unsuited)


def _sentence(insight: Insight) -> str:
    return " ".join(filter(None, [insight.headline, insight.detail]))


def inspect_page(clock: Run, title: str, loaded: LoadedModel, reference: LoadedModel | None, seen: Seen) -> Report:
    """Return the report of inspections, a section each."""
    insights = seen.insights.values()
    unknown = "Without the attack's file (`--attack`), only clean images are shown."
    return Report(
        title=title,
        sections=[insight_section(_title(name), insight) for name, insight in seen.insights.items()],
        facts={**{head: facts for one in insights for head, facts in insight_facts(one).items()}, **clock.facts()},
        notes=[
            f"This page {NO_VERDICT}",
            *([] if "attack" in clock.options else [unknown]),
            *(f"{_title(name)}: none, since {why}." for name, why in seen.unsuited.items()),
            *(note for insight in insights for note in insight.notes),
            *notes_of(loaded),
            *(f"The reference: {note}" for note in (notes_of(reference) if reference else ())),
        ],
    )
