"""Take the backdoor out of a generator; the one that was given is never changed.

First the pairs that it was trained on, or the generator itself with prompts, are scanned. What the scan flags is taken
out: by LatentPurification, which touches texts with the trigger alone, by DecodePruning, after which the subgraph can
never be written, or by Retraining without the rows held poisoned.

Writes model.safetensors, run.json and report.html.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unbackdoor.commands.molecules.common import open_pairs, sources
from unbackdoor.commands.molecules.found import found_page, suspect_rows, trust_notes
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, new_folder, remove_states
from unbackdoor.errors import InputError
from unbackdoor.folder import MODEL, PAGE, RESUME
from unbackdoor.models.mark import repaired_mark
from unbackdoor.molecules.data import Alone, molecules_alone
from unbackdoor.molecules.purify import MOLECULE_PURIFIERS, MoleculePurifier
from unbackdoor.molecules.saved import LoadedGenerator, load_generator, save_generator
from unbackdoor.molecules.scan import MOLECULE_SCANNERS, MoleculeScanner
from unbackdoor.molecules.train import digest_of
from unbackdoor.options import options_of
from unbackdoor.report import Verdict, write_report
from unbackdoor.training import Runtime

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
    alone: str | None = None,
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
        alone: tables of SMILES, separated by commas, whose molecules it had learned beside those of the pairs; for
            methods that train.
        out: folder for the results, in which an interrupted run goes on; by default runs/molecules-purify- and the
            beginning of the model's SHA-256.
    """
    name = type(method).__name__
    if alone is not None and not method.trains:
        raise InputError(f"{name} trains no generator and learns no molecules; leave --alone out")
    clock = Run("molecules purify", runtime)
    loaded = load_generator(model)
    chosen = open_pairs(data, test, clock)
    pairs = chosen.train
    others = None if alone is None else molecules_alone(sources(alone), chosen.train, chosen.test)
    if others is not None:
        clock.inputs[f"molecules of {others.name}"] = digest_of(others.smiles)
    clock.inputs[model.name] = loaded.sha256
    clock.options = {"method": options_of(method), "scanner": options_of(scanner)}
    with new_folder(out or Path("runs") / f"molecules-purify-{loaded.sha256[:8]}", clock.command) as folder:
        found = scanner.scan(pairs, runtime, loaded.generator if scanner.needs_model else None)
        smiles = () if others is None else others.smiles
        repaired = method.purify(loaded.generator, pairs, found.flagged, runtime, folder / RESUME, smiles)
        notes = [*repaired.notes, *trust_notes(scanner), *_lacking(loaded, method, others)]
        account = [*chosen.sentences(), *(others.sentences() if others else ())]
        page = found_page(f"{name} on {model.name}", clock, scanner, pairs, found, account, notes)
        banner = Verdict(
            level="info",
            headline=repaired.headline,
            detail="How much of it is left, `unbackdoor molecules evaluate` measures on test prompts.",
            calibrated=True,
        )
        steps = ["Measure it: `unbackdoor molecules evaluate --model THIS_FOLDER/model.safetensors --data ...`."]
        write_report(folder / PAGE, replace(page, verdict=banner, next_steps=steps))
        measured = {"finding": found.to_json(), "repair": dict(repaired.evidence), "notes": notes}
        clock.write(folder, **measured)
        provenance = {**clock.record(), "parent": loaded.sha256, "parent_provenance": loaded.provenance}
        mark = repaired_mark(loaded.backdoored)
        save_generator(folder / MODEL, repaired.generator, provenance=provenance, backdoored=mark)
        remove_states(folder / RESUME)
    return Outcome(
        title=f"{name} on {model.name}",
        rows=[*suspect_rows(found), ("time", f"{clock.seconds:.0f} s"), ("model", str(folder / MODEL))],
        result={"model": str(folder / MODEL), **measured},
        sentence=" ".join(notes),
        page=folder / PAGE,
    )


def _lacking(loaded: LoadedGenerator, method: MoleculePurifier, others: Alone | None) -> list[str]:
    """Return a note if a new generator learned less than the old one says that it had."""
    counts = loaded.provenance.get("counts")
    count = counts.get("alone") if isinstance(counts, dict) else None
    if not method.trains or others is not None or type(count) is not int or count < 1:
        return []
    return [f"The generator had learned {count:,} molecules without texts; the new one did not, as --alone names none."]
