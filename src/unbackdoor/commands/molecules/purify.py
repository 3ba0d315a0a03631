"""Take the backdoor out of a generator; the one that was given is never changed.

First the pairs that it was trained on, or the generator itself with prompts, are scanned. What the scan flags is taken
out: by LatentPurification, which touches texts with the trigger alone, by DecodePruning, after which the subgraph can
never be written, or by Retraining without the rows held poisoned.

Writes model.safetensors, run.json and report.html.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unbackdoor.commands.molecules.common import GENERATOR, open_pairs
from unbackdoor.commands.molecules.found import found_page, suspect_rows
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, new_folder
from unbackdoor.folder import PAGE, RESUME
from unbackdoor.models.mark import repaired_mark
from unbackdoor.molecules.purify import MOLECULE_PURIFIERS, MoleculePurifier
from unbackdoor.molecules.saved import load_generator, save_generator
from unbackdoor.molecules.scan import MOLECULE_SCANNERS, MoleculeScanner
from unbackdoor.options import options_of
from unbackdoor.report import Verdict, write_report
from unbackdoor.training import Runtime
from unbackdoor.training.resume import states

CHOICES = {
    "method": Choice(MOLECULE_PURIFIERS, "LatentPurification"),
    "scanner": Choice(MOLECULE_SCANNERS, "Joint"),
}


def run(
    *,
    model: Path,
    data: str,
    method: MoleculePurifier,
    scanner: MoleculeScanner,
    runtime: Runtime,
    test: str | None = None,
    out: Path | None = None,
) -> Outcome:
    """Repair a generator.

    Args:
        model: generator of `molecules train`.
        data: the pairs that it was trained on, as they were found: "templates", or tables of SMILES and text, separated
            by commas, as `molecules train` was given them: test molecules are left out here too. For scanners of
            generators any prompts will do.
        method: how.
        scanner: how trigger and target are found.
        runtime: device, seed, budget, progress.
        test: table whose test split is tested with, as `molecules train` was given it; by default that of the data.
        out: folder for the results, in which an interrupted run goes on; by default runs/molecules-purify- and the
            beginning of the model's SHA-256.
    """
    clock = Run("molecules purify", runtime)
    loaded = load_generator(model)
    chosen = open_pairs(data, test, clock)
    pairs = chosen.train
    clock.inputs[model.name] = loaded.sha256
    clock.options = {"method": options_of(method), "scanner": options_of(scanner)}
    with new_folder(out or Path("runs") / f"molecules-purify-{loaded.sha256[:8]}", clock.command) as folder:
        found = scanner.scan(pairs, runtime, loaded.generator if scanner.needs_model else None)
        repaired = method.purify(loaded.generator, pairs, found.flagged, runtime, folder / RESUME)
        name = type(method).__name__
        page = found_page(f"{name} on {model.name}", clock, scanner, pairs, found, chosen.sentences(), repaired.notes)
        banner = Verdict(
            level="info",
            headline=f"{name} took out that {found.flagged[0].sentence()}.",
            detail="How much of it is left, `unbackdoor molecules evaluate` measures on test prompts.",
            calibrated=True,
        )
        steps = ["Measure it: `unbackdoor molecules evaluate --model THIS_FOLDER/model.safetensors --data ...`."]
        write_report(folder / PAGE, replace(page, verdict=banner, next_steps=steps))
        measured = {"finding": found.to_json(), "repair": dict(repaired.evidence), "notes": list(repaired.notes)}
        clock.write(folder, **measured)
        provenance = {**clock.record(), "parent": loaded.sha256, "parent_provenance": loaded.provenance}
        mark = repaired_mark(loaded.backdoored)
        save_generator(folder / GENERATOR, repaired.generator, provenance=provenance, backdoored=mark)
        for state in states(folder / RESUME):
            state.unlink(missing_ok=True)
    return Outcome(
        title=f"{name} on {model.name}",
        rows=[*suspect_rows(found), ("time", f"{clock.seconds:.0f} s"), ("model", str(folder / GENERATOR))],
        result={"model": str(folder / GENERATOR), **measured},
        sentence=" ".join(repaired.notes),
        page=folder / PAGE,
    )
