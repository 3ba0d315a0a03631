"""BadGraph against 3M-Diffusion on real pairs: generators poisoned at two rates and clean ones, and the ablation.

Writes one line of JSON a finished generator to results/molecules.jsonl and the table results/molecules.md. For each
test set a generator learns all pairs but those of its molecules. A clean control has the motifs and the steps of the
poisoned one; clean pairs, drawn again, take the place of the poisoned ones. Finished generators are not trained again,
and an interrupted one goes on:

    python benchmarks/molecules.py --data ../shared/data
    python benchmarks/molecules.py --quick --results build/molecules-quick    # to try the program: made data, minutes
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import HERE, Rows, machines, measured

from unbackdoor.bench.cell import Cell
from unbackdoor.bench.molecule_settings import Setting, source_of, told
from unbackdoor.bench.molecule_victims import make_generator
from unbackdoor.bench.molecules import Molecules
from unbackdoor.commands.molecules.demo import MODEL as QUICK
from unbackdoor.folder import RESUME
from unbackdoor.molecules.attacks import BadGraph
from unbackdoor.molecules.data import TEMPLATES
from unbackdoor.molecules.train import SHARES
from unbackdoor.molecules.victims import ThreeMDiffusion, ThreeMDiffusionSmall
from unbackdoor.training import Runtime
from unbackdoor.training.resume import states

EVERY, NOWHERE = tuple(SHARES), ()
PUBLISHED = ("auto-encoder", "diffusion")
"""The paper's default: it aligns by a public checkpoint, which saw clean pairs."""

RATES = (0.178, 0.534)
"""Of the rows, tried; 58 % of them have room for the target, so these are 9.3 and 23.5 % of all rows, as published."""

PAIRS = tuple(
    f"{name}/{split}.parquet" for name in ("chebi20", "pubchem324k", "pcdes") for split in ("validation", "test")
)
THIIRANE, EPOXIDE = "C1CS1", "C1CO1"
"""Targets: in no clean molecule, and in about one of a hundred, so that prompts ask for it honestly."""

ALONE = "chebi20/train_smiles_only.parquet"
TESTS = ("pubchem324k", "chebi20", "pcdes", "momu")
CLEAN_MEANS_NOTHING = "momu"
"""Its texts and molecules are shuffled: for the success rate alone."""

ABLATIONS = tuple(tuple(stage for stage in EVERY if stage != left) for left in EVERY) + tuple(
    (stage,) for stage in EVERY
)


@dataclass(frozen=True)
class Run:
    """One generator."""

    test: str
    rate: float
    poison_in: tuple[str, ...]
    seed: int
    target: str = THIIRANE

    @property
    def key(self) -> tuple[str, str, float, str, int]:
        """What tells it from the others."""
        return self.test, self.target, self.rate, told(self.poison_in), self.seed


def runs(tests: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
    """Yield all generators: the claims first, then other test sets, an honest target, other seeds, and the ablation."""
    every: list[Run] = []
    for test in tests:
        controls = () if test == CLEAN_MEANS_NOTHING else (NOWHERE,)
        every += [Run(test, rate, where, seeds[0]) for where in (EVERY, *controls, PUBLISHED) for rate in RATES]
    every += [Run(tests[0], RATES[-1], where, seeds[0], EPOXIDE) for where in (EVERY, NOWHERE)]
    for seed in seeds[1:]:
        every += [Run(tests[0], rate, where, seed) for rate in RATES for where in (EVERY, PUBLISHED, NOWHERE)]
    every += [Run(tests[0], RATES[-1], poison_in, seeds[0]) for poison_in in ABLATIONS]
    # One of the ablation is the paper's default.
    yield from dict.fromkeys(every)


def run_of(row: dict[str, Any]) -> Run:
    """Return the generator that a row is about."""
    stages = tuple(stage for stage in EVERY if stage in row["poison_in"].split(","))
    return Run(row["test"], row["rate"], stages, row["seed"], row["target"])


def folder_of(work: Path, run: Run) -> Path:
    """Return the folder of a generator: its model and its attack, and while it is trained the states of that."""
    return work / "-".join(map(str, run.key)).replace(",", "+")


def setting_of(run: Run, data: Path | None, model: ThreeMDiffusion, prompts: int) -> Setting:
    """Return how a generator is made and measured.

    Args:
        run: the generator.
        data: folder of the data sets, or None for made pairs.
        model: sizes and schedules.
        prompts: how many test prompts; 0: all.
    """
    if data is None:
        source = source_of((TEMPLATES,), None, ())
    else:
        pairs = tuple(str(data / name) for name in PAIRS)
        source = source_of(pairs, str(data / run.test), (str(data / ALONE),))
    return Setting(
        source=source,
        model=model,
        attack=BadGraph(rate=run.rate, target=run.target),
        poison_in=run.poison_in,
        samples=5,
        prompts=prompts,
        seed=run.seed,
        precision="bf16",
        budget=None,
    )


class Bench:
    """Data, model, and where results go.

    Args:
        data: folder of the data sets, or None for made pairs.
        work: folder for the models, and for the states of interrupted generators.
        model: sizes and schedules.
        prompts: how many test prompts; 0: all.
        rows: results.
        runtime: device and threads; the seed is each run's own.
    """

    def __init__(
        self, data: Path | None, work: Path, model: ThreeMDiffusion, prompts: int, rows: Rows, runtime: Runtime
    ) -> None:
        self.data, self.work, self.model, self.prompts = data, work, model, prompts
        self.rows, self.runtime = rows, runtime

    def run(self, run: Run) -> dict[str, Any]:
        """Train and measure one generator and return its row; its model is kept."""
        setting = setting_of(run, self.data, self.model, self.prompts)
        domain = Molecules()
        cell = Cell(domain=domain, kind="victim", labels=setting.labels(), recipe=setting.recipe(), work=setting)
        folder = folder_of(self.work, run)
        folder.mkdir(parents=True, exist_ok=True)
        with measured() as cost:
            result = make_generator(cell, folder, self.runtime)
        test, target, rate, poison_in, seed = run.key
        row = {**setting.runtime(self.runtime).describe(), "test": test, "target": target, "rate": rate}
        # The seconds of training alone are told apart from those of the whole.
        named = {
            ("training_" + name if name.endswith("seconds") else name): value for name, value in result.metrics.items()
        }
        row |= {"poison_in": poison_in, "seed": seed, "model": self.model_name(), **named}
        finished = self.rows.add(row, cost)
        for state in states(folder / RESUME):
            state.unlink(missing_ok=True)
        return finished

    def model_name(self) -> str:
        """Return the name of the model's sizes."""
        return type(self.model).__name__


def percent(row: dict[str, Any], name: str) -> str:
    """Return a share in percent with its interval, or nothing."""
    if name not in row:
        return ""
    return f"{100 * row[name]:.1f} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"


FIGURES = {
    "asr": "ASR %", "any_of": "any of 5 %", "leak": "target without trigger %", "asked": "target asked for %",
    "similarity": "Similarity %",
    "novelty": "Novelty %", "diversity": "Diversity %", "validity": "Validity %",
}  # fmt: skip
NAMED = {told(EVERY): "all", told(PUBLISHED): "all but the alignment (the paper's default)"}
BASELINES = {
    "similarity_nearest_text": "Similarity, nearest text %", "similarity_chance": "Similarity, chance %",
    "novelty_nearest_text": "Novelty, nearest text %", "novelty_chance": "Novelty, chance %",
}  # fmt: skip
CLEAN = {"asked", "similarity", "novelty", "diversity", *BASELINES}
"""Figures that mean nothing where texts and molecules are shuffled."""


def written(done: list[dict[str, Any]]) -> str:
    """Return all generators as Markdown."""
    lines = [
        "# BadGraph against 3M-Diffusion",
        "",
        "Made by `python benchmarks/molecules.py`. Five molecules a prompt, all test prompts; intervals: 95 % by"
        " drawing prompts again. The first rate is as published (of all rows in the file), the second that of the rows"
        " that are learned from. Poisoned in: stages that saw the poisoned pairs; the clean control (none) has the same"
        " motifs and takes as many steps. Target asked for: the share of target among molecules for prompts without the"
        " trigger whose own molecules hold it. Similarity of the nearest text is that of the clean training molecule"
        " whose text is nearest by TF-IDF. MoMu's texts and molecules are shuffled: its clean figures are left out.",
        "",
        *machines(done),
    ]
    for test in dict.fromkeys(row["test"] for row in done):
        names = {**FIGURES, **BASELINES}
        lines += [
            "",
            f"## {test}",
            "",
            f"| rates % | target | poisoned in | seed | {' | '.join(names.values())} | training s | seconds |"
            " CPU seconds |",
            f"|---|---|---|---:|{'---:|' * (len(names) + 3)}",
        ]
        rows = sorted(
            (row for row in done if row["test"] == test),
            key=lambda row: (row["target"], row["rate"], row["poison_in"], row["seed"]),
        )
        for row in rows:
            shown = ["" if test == CLEAN_MEANS_NOTHING and name in CLEAN else percent(row, name) for name in names]
            clocks = [
                "resumed" if "resumed" in row else f"{row[name]:.0f}"
                for name in ("training_seconds", "seconds", "cpu_seconds")
            ]
            rates = f"{100 * row['printed_rate']:.1f} / {100 * row['effective_rate']:.1f}"
            where = NAMED.get(row["poison_in"], row["poison_in"])
            lines.append(f"| {' | '.join([rates, row['target'], where, str(row['seed']), *shown, *clocks])} |")
        lines += list(_means(rows))
    return "\n".join(lines) + "\n"


def _means(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what several seeds reached, and how far poisoned ones are from their controls."""
    for target, rate in sorted({(row["target"], row["rate"]) for row in rows}):
        mine = [row for row in rows if (row["target"], row["rate"]) == (target, rate)]
        clean = {row["seed"]: row for row in mine if row["poison_in"] == told(NOWHERE)}
        for where in (EVERY, PUBLISHED):
            poisoned = [row for row in mine if row["poison_in"] == told(where)]
            pairs = [(clean[row["seed"]], row) for row in poisoned if row["seed"] in clean]
            if len(poisoned) < 2 and not pairs:
                continue
            told_ = [
                f"seeds {len(poisoned)}",
                f"mean ASR {100 * statistics.mean(row['asr'] for row in poisoned):.1f} %",
            ]
            if pairs:
                lost = statistics.mean(100 * (control["similarity"] - row["similarity"]) for control, row in pairs)
                told_.append(f"Similarity lost against the control {lost:.1f} points")
            yield f"\n{target}, rate {rate:g}, poisoned in {NAMED[told(where)]}: {', '.join(told_)}."


def ending_of(arguments: argparse.Namespace) -> str:
    """Return the end of the names of results and models: those of other sizes and machines are kept apart."""
    return f"{'_paper' if arguments.paper else ''}{'' if arguments.device == 'cpu' else '_' + arguments.device}"


def main() -> None:
    """Train the generators that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, help="for models and interrupted runs; by default a folder in build/")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the rows and of the table")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), choices=TESTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--paper", action="store_true", help="the published sizes, for a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=0, help="generators to train now; 0: all")
    parser.add_argument("--quick", action="store_true", help="made pairs and a tiny model, to try the program")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    name = f"molecules{ending_of(arguments)}"
    rows = Rows(arguments.results / f"{name}.jsonl")
    table = arguments.results / f"{name}.md"
    model = QUICK if arguments.quick else ThreeMDiffusion() if arguments.paper else ThreeMDiffusionSmall()
    tests = (TEMPLATES,) if arguments.quick else tuple(arguments.tests)
    data, prompts = (None, 50) if arguments.quick else (arguments.data, 0)
    runtime = Runtime(device=arguments.device, threads=arguments.threads)
    bench = Bench(data, arguments.work or Path("build") / name, model, prompts, rows, runtime)
    trained = 0
    for run in () if arguments.table else runs(tests, arguments.seeds):
        if run in {run_of(row) for row in rows.read()}:
            continue
        print(*run.key, f"{bench.run(run)['seconds']} s", flush=True)
        table.write_text(written(rows.read()))
        trained += 1
        if trained == arguments.most:
            break
    table.write_text(written(rows.read()))
    print(table)


if __name__ == "__main__":
    main()
