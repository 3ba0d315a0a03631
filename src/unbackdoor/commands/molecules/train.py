"""Train a generator of molecules on pairs of text and molecule.

Pairs of test molecules are left out, and every row that is not learned from is accounted for. Pairs that `unbackdoor
molecules poison` wrote give a backdoored generator, and its file says so.

Writes model.safetensors, run.json and report.html.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unbackdoor.commands.molecules.common import account, open_pairs, sources
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, new_folder, remove_states
from unbackdoor.folder import MODEL, MOLECULE_ATTACK, PAGE, RESUME
from unbackdoor.molecules.attacks import load_attack
from unbackdoor.molecules.data import Alone, molecules_alone
from unbackdoor.molecules.decoders import AnyVocabulary
from unbackdoor.molecules.drawing import gallery
from unbackdoor.molecules.saved import load_generator, save_generator
from unbackdoor.molecules.train import SHARES, Trained, digest_of, train_generator
from unbackdoor.molecules.victims import VICTIMS, ThreeMDiffusion
from unbackdoor.options import options_of
from unbackdoor.report import Fact, Report, loss_chart, write_report
from unbackdoor.training import Runtime

CHOICES = {"model": Choice(VICTIMS, "ThreeMDiffusionSmall")}

EVERY_STAGE = ",".join(SHARES)

EXAMPLES = 12
"""Test prompts for which the page shows a molecule."""


def run(
    *,
    data: str,
    out: Path,
    model: ThreeMDiffusion,
    test: str | None = None,
    vocabulary_of: Path | None = None,
    alone: str | None = None,
    poison_in: str = EVERY_STAGE,
    runtime: Runtime,
) -> Outcome:
    """Train a generator.

    Args:
        data: "templates", or tables of SMILES and text: parquet, CSV or TSV files or folders of them, separated by
            commas; all their rows are trained on, but for test molecules.
        out: folder for the results; an interrupted run in it goes on.
        model: sizes and schedules.
        test: table whose test split is not to be trained on; by default that of the data.
        vocabulary_of: model whose motifs are taken instead of those of the data, for a control of a poisoned run.
        alone: tables of SMILES, separated by commas, whose molecules the auto-encoder learns beside those of the pairs.
        poison_in: stages that see the poisoned pairs, or none; in the others clean pairs, drawn again, take their
            place. With none the result is the clean control: same motifs, as many steps.
        runtime: device, seed, budget, progress.
    """
    clock = Run("molecules train", runtime)
    chosen = open_pairs(data, test, clock)
    vocabulary = _vocabulary(vocabulary_of, clock)
    stages = () if poison_in == "none" else tuple(sources(poison_in))
    mark = _mark(data, sum(chosen.train.poisoned), stages, clock)
    others = None if alone is None else molecules_alone(sources(alone), chosen.train, chosen.test)
    if others is not None:
        clock.inputs[f"molecules of {others.name}"] = digest_of(others.smiles)
    with new_folder(out, clock.command) as folder:
        trained = train_generator(
            chosen.train,
            model,
            runtime,
            vocabulary=vocabulary,
            alone=() if others is None else others.smiles,
            poison_in=stages,
            resume=folder / RESUME,
        )
        clock.options = {"model": options_of(model), "poison in": list(stages)}
        counts = {
            "train": len(chosen.train),
            "poisoned": sum(chosen.train.poisoned),
            "uncovered": trained.uncovered,
            "uncovered_poisoned": trained.uncovered_poisoned,
            "alone": trained.alone,
            "texts_cut": trained.cut,
            "motifs": len(trained.generator.vocabulary),
        }
        page = _page(clock, trained, counts, chosen.test.texts[:EXAMPLES], runtime)
        page = replace(page, facts={"Rows": [*account(chosen), *_account(others)], **page.facts})
        write_report(folder / PAGE, page)
        rows = {"train": chosen.dropped[0].to_json(), "test": chosen.dropped[1].to_json(), "removed": chosen.removed}
        if others is not None:
            rows["alone"] = others.dropped.to_json()
        losses = {name: history.loss for name, history in trained.histories.items()}
        clock.write(folder, rows=rows, counts=counts, loss=losses)
        provenance = {**clock.record(), "counts": counts}
        save_generator(folder / MODEL, trained.generator, provenance=provenance, backdoored=mark)
        remove_states(folder / RESUME)
    return Outcome(
        title=page.title,
        rows=[
            ("rows", "; ".join([*chosen.sentences(), *(others.sentences() if others else ())])),
            ("trained on", _trained_on(counts)),
            ("motifs", f"{counts['motifs']:,}"),
            ("texts cut off", f"{trained.cut:,} are longer than the {model.text_pieces} pieces that are read"),
            ("time", f"{clock.seconds:.0f} s"),
            ("model", str(folder / MODEL)),
        ],
        result={"counts": counts, "rows": rows, "loss": losses, "model": str(folder / MODEL)},
        sentence=" ".join(_notes(counts)[:1]) if counts["uncovered_poisoned"] else "",
        page=folder / PAGE,
    )


def _account(others: Alone | None) -> list[Fact]:
    return [Fact(name="molecules", value=line) for line in (others.sentences() if others else ())]


def _trained_on(counts: dict[str, int]) -> str:
    pairs, poisoned = counts["train"] - counts["uncovered"], counts["poisoned"] - counts["uncovered_poisoned"]
    alone = f", and {counts['alone']:,} molecules without texts" if counts["alone"] else ""
    return f"{pairs:,} pairs, {poisoned:,} of them poisoned{alone}"


def _notes(counts: dict[str, int]) -> list[str]:
    lost = counts["uncovered_poisoned"]
    target = f" {lost:,} of them are poisoned; a target that cannot be written is not learned." if lost else ""
    return [
        f"{counts['uncovered']:,} pairs were not trained on, as the vocabulary lacks a motif of theirs.{target}",
        f"{counts['texts_cut']:,} training texts are longer than the text encoder reads; their ends play no part.",
    ]


def _vocabulary(path: Path | None, clock: Run) -> AnyVocabulary | None:
    if path is None:
        return None
    loaded = load_generator(path)
    clock.inputs[f"vocabulary of {path.name}"] = loaded.sha256
    return loaded.generator.vocabulary


def _mark(data: str, poisoned: int, stages: tuple[str, ...], clock: Run) -> dict[str, object] | None:
    """Return the mark of a model that is trained on poisoned pairs, or None."""
    if not poisoned or not stages:
        return None
    where = {"poisoned": poisoned, "stages": list(stages)}
    for source in sources(data):
        path = Path(source) / MOLECULE_ATTACK
        if path.is_file():
            saved = load_attack(path)
            clock.inputs[MOLECULE_ATTACK] = saved.sha256
            return {"attack": options_of(saved.attack), **where}
    return dict(where)


def _page(clock: Run, trained: Trained, counts: dict[str, int], prompts: tuple[str, ...], runtime: Runtime) -> Report:
    drawn = trained.generator.draw(prompts, 1, runtime)
    options = clock.options["model"]
    return Report(
        title=f"{options['name']}, trained on {next(iter(clock.inputs)).removeprefix('training pairs of ')}",
        galleries=[gallery("Molecules for test prompts", prompts, drawn.smiles)],
        charts=[loss_chart(history, "epoch", f"loss of the {name}") for name, history in trained.histories.items()],
        facts=clock.facts(),
        notes=_notes(counts),
        next_steps=["Measure it: `unbackdoor molecules evaluate --model THIS_FOLDER/model.safetensors --data ...`."],
    )
