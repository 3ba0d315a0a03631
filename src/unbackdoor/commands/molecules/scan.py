"""Ask which texts lead to subgraphs that they do not ask for: of pairs of text and molecule, or of a generator.

Pairs are scanned by Association, ExogenousAssociation, Joint and TwinDifference. PromptMasking and TriggerInversion ask
a generator (--model), with the texts of the data as prompts.

Writes suspicion.parquet (row, smiles, description, score, suspicion, reason), run.json and report.html. Exit code 1 if
a pair of text and subgraph is held to be a backdoor, 0 if none is, 3 if the data do not allow a verdict.
"""

from __future__ import annotations

from pathlib import Path

from unbackdoor.commands.molecules.found import found_page, open_untrusted, suspect_rows, trust_notes
from unbackdoor.commands.outcome import BACKDOORED, INCONCLUSIVE, NO_EVIDENCE, Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, report_folder
from unbackdoor.errors import InputError
from unbackdoor.folder import PAGE, SUSPICION
from unbackdoor.molecules.data.cleaned import check_target, write_kept
from unbackdoor.molecules.saved import load_generator
from unbackdoor.molecules.scan import MOLECULE_SCANNERS, MoleculeFinding, MoleculeScanner
from unbackdoor.molecules.scan.table import write_suspicion
from unbackdoor.options import options_of
from unbackdoor.report import write_report
from unbackdoor.training import Runtime

CHOICES = {"method": Choice(MOLECULE_SCANNERS, "Joint")}


def run(
    *,
    data: str,
    method: MoleculeScanner,
    runtime: Runtime,
    model: Path | None = None,
    test: str | None = None,
    clean_out: Path | None = None,
    out: Path | None = None,
) -> Outcome:
    """Scan pairs of text and molecule, or a generator.

    Args:
        data: "templates", or tables of SMILES and text, separated by commas: the untrusted pairs. For scanners of
            generators they are prompts, and tables need no SMILES.
        method: how.
        runtime: device, seed, progress.
        model: generator of `molecules train`, for the scanners that ask one.
        test: table whose test split is tested with, as `molecules train` was given it: pairs of its molecules are
            not scanned. By default the test split of the data, of the first table if there are several; a source
            without splits is then scanned whole.
        clean_out: new folder for the rows of the data that are not held poisoned, with all of their columns: a parquet
            file for each file. Rows that are tested with are copied whole.
        out: folder for the results, replaced if it is a scan's; by default runs/molecules-scan- and the beginning of
            the data's SHA-256.
    """
    clock = Run("molecules scan", runtime)
    if model is not None and not method.needs_model:
        raise InputError(f"{type(method).__name__} scans pairs and asks no generator; leave --model out")
    if clean_out is not None:
        if method.needs_model:
            raise InputError(f"{type(method).__name__} scans a generator and holds no rows poisoned; leave --clean-out")
        check_target(clean_out)
    loaded = None if model is None else load_generator(model)
    untrusted = open_untrusted(data, test, clock, prompts=method.needs_model)
    pairs = untrusted.pairs
    with report_folder(out or Path("runs") / f"molecules-scan-{pairs.digest()[:8]}", clock.command) as folder:
        found = method.scan(pairs, runtime, None if loaded is None else loaded.generator)
        clock.options = {"method": options_of(method)}
        if loaded is not None and model is not None:
            clock.inputs[model.name] = loaded.sha256
        if clean_out is not None:
            dropped = {pairs.rows[row] for row in found.poisoned.nonzero()[0]}
            write_kept(untrusted.parts, dropped, clean_out)
        write_suspicion(folder / SUSPICION, pairs, found)
        notes = ["A scan sees what it was made for; a trigger that it is blind to leaves no evidence."]
        notes += trust_notes(method)
        if loaded is not None and loaded.backdoored is not None:
            notes.append("The file itself says that the model was trained on pairs that were poisoned on purpose.")
        account = untrusted.sentences()
        write_report(folder / PAGE, found_page(f"Scan of {pairs.name}", clock, method, pairs, found, account, notes))
        clock.write(folder, finding=found.to_json(), account=untrusted.to_json())
        return Outcome(
            code=exit_code(found),
            title=f"scan of {pairs.name}",
            rows=[
                *suspect_rows(found),
                ("held poisoned", f"{int(found.poisoned.sum()):,} of {len(pairs):,} pairs"),
                ("calibrated", "no: the false-alarm rate is not known"),
                ("rows", "; ".join(account)),
                ("time", f"{clock.seconds:.0f} s"),
                ("table", str(folder / SUSPICION)),
                *([("cleaned data", str(clean_out))] if clean_out is not None else []),
            ],
            result={
                "table": str(folder / SUSPICION),
                "cleaned": None if clean_out is None else str(clean_out),
                **found.to_json(),
            },
            sentence=f"{found.reason}.",
            page=folder / PAGE,
        )


def exit_code(found: MoleculeFinding) -> int:
    """Return the exit code of an answer."""
    if found.backdoored is None:
        return INCONCLUSIVE
    return BACKDOORED if found.backdoored else NO_EVIDENCE
