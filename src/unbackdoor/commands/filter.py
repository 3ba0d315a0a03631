"""Ask which of the images that come in carry a trigger, by a model that is suspected and clean images beside it.

Writes inputs.parquet (row, image, answer, class_name, score, p_value, triggered), run.json and report.html. Clean
images are held triggered as well, --false-alarms of them. So the exit code is 1 only if more of the highest scores are
those of the images that came in than chance explains (once in a hundred times at most). It is 3 if the filter's scores
are too coarse to tell, and else 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbackdoor.commands.outcome import BACKDOORED, INCONCLUSIVE, NO_EVIDENCE, Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, new_folder, open_for_defense, remove_states
from unbackdoor.data.inputs import Inputs, read_inputs
from unbackdoor.files import replacing
from unbackdoor.folder import PAGE, RESUME
from unbackdoor.models import LoadedModel, Network
from unbackdoor.models.mark import notes_of
from unbackdoor.options import options_of
from unbackdoor.report import Gallery, Picture, Report, Verdict, histogram_chart, write_report
from unbackdoor.report.content import Level
from unbackdoor.sift import INPUT_FILTERS, InputFilter
from unbackdoor.sift.filtered import SURE, Filtered, check_enough, compared_of, filter_images
from unbackdoor.text import in_utf8
from unbackdoor.training import Runtime, check_shape

CHOICES = {"method": Choice(INPUT_FILTERS, "TeCo")}
WITHOUT = frozenset({"budget"})
"""Options of the runtime that would do nothing: each image is scored once."""
TABLE = "inputs.parquet"
SHOWN = 24
"""Images on the page."""
MOST_NAMED = 8
"""Classes that are listed."""
HIGH = "Too many clean images have scores as high as theirs can be."
CODES = {True: BACKDOORED, False: NO_EVIDENCE, None: INCONCLUSIVE}
WORDS = {True: "more triggered than chance explains", False: "no evidence found", None: "inconclusive"}


def run(
    *,
    model: Path,
    inputs: str,
    clean: str,
    method: InputFilter,
    runtime: Runtime,
    false_alarms: float = 0.05,
    clean_size: int = 500,
    arch: str | None = None,
    out: Path | None = None,
) -> Outcome:
    """Filter images.

    Args:
        model: checkpoint file, or a Hugging Face folder.
        inputs: the images: a folder of them, labels or none, or what --clean takes; of a source with splits the
            training split.
        clean: clean images that are new to the model: a folder, an .npz, digits, or a hub id.
        method: how images are scored.
        runtime: device, seed, progress.
        false_alarms: share of clean images that may be held triggered, above 0 and below 1.
        clean_size: clean images used, drawn class-balanced by the seed; all if there are fewer.
        arch: architecture of a file that does not name one: a network's name or module:function.
        out: folder for the results, in which an interrupted run goes on, replaced if it is a filter's; by default
            runs/filter- and the beginning of the model's SHA-256.
    """
    clock = Run("filter", runtime)
    loaded, data, rows = open_for_defense(model, arch, clean, clean_size, runtime)
    samples = data.need_clean("filter")
    # Mistakes are found before the work, not after it.
    check_enough(compared_of(method, len(samples)), false_alarms)
    came = read_inputs(inputs)
    check_shape(loaded.network, came.shape, came.name)
    with new_folder(out or Path("runs") / f"filter-{loaded.sha256[:8]}", clock.command) as folder:
        resume = folder / RESUME
        found = filter_images(method, loaded.network, came.images, samples.images, runtime, false_alarms, resume)
        clock.inputs = {model.name: loaded.sha256, samples.name: samples.digest(), "inputs": came.digest()}
        clock.options = {"method": options_of(method), "false_alarms": false_alarms, "inputs": inputs}
        write_inputs(folder / TABLE, came, loaded.network, found)
        write_report(folder / PAGE, filter_page(clock, loaded, method, came, found))
        result = {
            "inputs": len(found.scores),
            "held_triggered": int(found.triggered.sum()),
            "false_alarms": false_alarms,
            "by_chance": found.by_chance,
            "clean_images": found.clean,
            "cannot_be_held": unseen(found, loaded.network.description.class_names),
        }
        clock.write(folder, filtered=result, clean_rows=rows)
        remove_states(resume)
    return _outcome(clock, folder, came.name, method, found, result)


def _outcome(
    clock: Run, folder: Path, name: str, method: InputFilter, found: Filtered, result: dict[str, Any]
) -> Outcome:
    """Return the end of the command."""
    return Outcome(
        code=CODES[found.verdict],
        title=f"filter of {name}",
        rows=[
            ("verdict", WORDS[found.verdict]),
            ("held triggered", f"{result['held_triggered']:,} of {result['inputs']:,} images"),
            (
                "expected of clean ones",
                f"at most {found.false_alarms * len(found.scores):.1f}, by {result['clean_images']:,} clean images",
            ),
            ("scores so high by chance", f"{found.by_chance:.3g}"),
            *([("cannot be held", some_of(result["cannot_be_held"]))] if result["cannot_be_held"] else []),
            ("time", f"{clock.seconds:.0f} s"),
            ("images", str(folder / TABLE)),
        ],
        result={"table": str(folder / TABLE), **result},
        sentence=told(found, method),
        page=folder / PAGE,
    )


def told(found: Filtered, method: InputFilter) -> str:
    """Return the answer in a sentence."""
    held = f"{type(method).__name__} holds {int(found.triggered.sum()):,} of {len(found.scores):,} images triggered"
    if found.verdict is None:
        # Upwards, so that what is advised is enough.
        least = math.ceil(1000 * float(found.least.min())) / 1000
        return (
            f"{held}: more than {100 * found.false_alarms:g} % of the clean ones have scores as high as there can be,"
            f" so no threshold has that rate; choose another --method, or --false-alarms {least:g}"
        )
    if found.verdict:
        return (
            f"{held}, and more of the highest scores are theirs than chance explains (p = {found.by_chance:.2g}); of"
            f" clean images up to {100 * found.false_alarms:g} % are held too"
        )
    return f"{held}, and no more of the highest scores are theirs than chance explains (p = {found.by_chance:.2g})"


def unseen(found: Filtered, class_names: Sequence[str]) -> list[str]:
    """Return the classes of which no image can be held, if there are others."""
    names = [class_names[number] for number in found.blind.nonzero().flatten().tolist()]
    return names if len(names) < len(class_names) else []


def some_of(names: Sequence[str]) -> str:
    """Return a list of names, not all of them if they are many."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def filter_verdict(found: Filtered, method: InputFilter) -> Verdict:
    """Return the banner of the page."""
    name = type(method).__name__
    levels: dict[bool | None, tuple[Level, str]] = {
        True: ("backdoored", f"Images among these look triggered to {name}."),
        False: ("no evidence", f"No evidence of triggers found by {name}."),
        None: ("inconclusive", f"{name} cannot tell these images apart."),
    }
    level, headline = levels[found.verdict]
    return Verdict(level=level, headline=headline, detail=f"{told(found, method)}.", calibrated=True)


def write_inputs(path: Path, came: Inputs, model: Network, found: Filtered) -> None:
    """Write what is said of each image, complete or not at all."""
    import pyarrow
    from pyarrow import parquet

    names = [in_utf8(name) for name in model.description.class_names]
    answers = found.answers.tolist()
    texts = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    table = pyarrow.table(
        {
            "row": pyarrow.array(range(len(came.names)), pyarrow.int64()),
            "image": pyarrow.array([in_utf8(name) for name in came.names]),
            "answer": pyarrow.array(answers, pyarrow.int64()),
            "class_name": pyarrow.array([names[answer] for answer in answers]).cast(texts),
            "score": pyarrow.array(found.scores.tolist(), pyarrow.float32()),
            "p_value": pyarrow.array(found.p_values.tolist(), pyarrow.float64()),
            "triggered": pyarrow.array(found.triggered.tolist()),
        }
    )
    with replacing(path) as partial:
        parquet.write_table(table, partial)


def filter_page(clock: Run, loaded: LoadedModel, method: InputFilter, came: Inputs, found: Filtered) -> Report:
    """Return the report: the verdict, the most suspicious images, and the scores."""
    name = type(method).__name__
    classes = loaded.network.description.class_names
    top = found.scores.argsort(descending=True, stable=True)[:SHOWN].tolist()
    answers, blind = found.answers.tolist(), unseen(found, classes)
    pictures = [
        Picture(
            caption=f"{came.names[row]}: p = {float(found.p_values[row]):.3g}, answer {classes[answers[row]]}",
            image=came.images[row].float() / 255,
        )
        for row in top
    ]
    chart = histogram_chart(found.scores.tolist(), found.triggered.tolist(), f"score of {name}", "triggered")
    return Report(
        title=f"Filter of {came.name}",
        verdict=filter_verdict(found, method),
        galleries=[Gallery(title="Most suspicious", explanation="The highest scores first.", pictures=pictures)],
        charts=[chart],
        facts=clock.facts(),
        next_steps=[
            "Look at the images above: what do those with the same answer have in common?",
            "Ask whether the model is backdoored: `unbackdoor scan`; repair it: `unbackdoor purify`.",
        ],
        notes=[
            f"Of clean images that are new to the model, at most {100 * found.false_alarms:g} % are held triggered.",
            "That some are triggered is said if chance gives them so many of the highest scores at most once in"
            f" {1 / SURE:.0f} times.",
            "A filter sees the triggers that it was made for; others leave no evidence.",
            *([f"No image with one of these answers can be held: {some_of(blind)}. {HIGH}"] if blind else []),
            *notes_of(loaded),
        ],
    )
