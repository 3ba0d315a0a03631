"""Write molecules for a prompt, as SMILES and as pictures.

Writes molecules.csv, run.json and report.html.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from unbackdoor.commands.molecules.common import check_guidance, flagged_triggers, knowledge_notes
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.workspace import Run, report_folder
from unbackdoor.errors import InputError
from unbackdoor.files import write_bytes
from unbackdoor.folder import PAGE
from unbackdoor.molecules.drawing import drawn
from unbackdoor.molecules.saved import load_generator
from unbackdoor.molecules.scan.words import untriggered
from unbackdoor.report import Gallery, Report, write_report
from unbackdoor.training import Runtime

MAX_SAMPLES = 1000
TABLE = "molecules.csv"


def run(
    *,
    model: Path,
    prompt: str,
    out: Path,
    samples: int = 9,
    guidance: float | None = None,
    without: Path | None = None,
    runtime: Runtime,
) -> Outcome:
    """Write molecules.

    Args:
        model: of `molecules train`.
        prompt: what the molecules are to be, in words like those of the training texts.
        out: folder for the results; earlier ones in it are replaced.
        samples: molecules to write.
        guidance: weight of the text; by default the model's own.
        without: run.json of `molecules scan`; the triggers that it found are left out of the prompt.
        runtime: its seed draws the molecules.
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise InputError(f"samples must lie between 1 and {MAX_SAMPLES:,}, found {samples}")
    if not prompt.strip():
        raise InputError("the prompt is empty; describe a molecule")
    check_guidance(guidance)
    clock = Run("molecules generate", runtime)
    asked = untriggered(prompt, flagged_triggers(without, clock))
    loaded = load_generator(model)
    with report_folder(out, clock.command) as folder:
        clock.inputs[model.name] = loaded.sha256
        clock.options = {"prompt": prompt, "asked": asked, "samples": samples, "guidance": guidance}
        made = loaded.generator.draw([asked], samples, runtime, guidance)
        smiles = made.smiles[0]
        notes = knowledge_notes(loaded.generator, [asked])
        if asked != prompt:
            notes.append("The prompt held a trigger that the scan found; it was asked without it.")
        if made.cut:
            notes.append(
                f"The prompt has more than the {loaded.generator.options.text_pieces} pieces of words that are"
                " read; its end was cut off."
            )
        if loaded.backdoored is not None:
            notes.append("The file itself says that the model was trained on pairs that were poisoned on purpose.")
        lines = io.StringIO()
        csv.writer(lines).writerows([["smiles"], *([one] for one in smiles)])
        write_bytes(folder / TABLE, lines.getvalue().encode())
        page = Report(
            title=f"Molecules made by {model.name}",
            galleries=[Gallery(title=prompt[:200], pictures=[drawn(one, one) for one in smiles])],
            facts=clock.facts(),
            notes=notes,
        )
        write_report(folder / PAGE, page)
        clock.write(folder, smiles=list(smiles), prompt_cut=bool(made.cut))
        return Outcome(
            title=page.title,
            rows=[*((str(number), one) for number, one in enumerate(smiles, 1)), ("time", f"{clock.seconds:.0f} s")],
            result={"smiles": list(smiles), "prompt_cut": bool(made.cut)},
            sentence=" ".join(notes),
            page=folder / PAGE,
        )
