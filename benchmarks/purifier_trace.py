"""NPD and SAU epoch by epoch, in bf16, in float32 and as published code takes the steps: where do they part, and when?

On a kept victim (see `victims/`), with the paper's schedule in the minutes that `grids/purify-small.yaml` gives, or in
all the time that it takes:

    python benchmarks/purifier_trace.py --method NPD --victim Blended-0 --data ../shared/data/cifar10
    python benchmarks/purifier_trace.py --method SAU --victim SIG-0 --no-budget
    python benchmarks/purifier_trace.py --method SAU --victim SIG-0 --precision fp32 --no-naive
    python benchmarks/purifier_trace.py --table                     # only write the table

The plain one (`naive/`) does as many epochs as ours did. After every epoch stands what `purifier_looks.py` sees, and
ACC, ASR and RA on a part of the test images; at the end on all. Nothing of that reaches the repair. Writes one line of
JSON a finished run to results/purifier_trace.jsonl and the table results/purifier_trace.md. A finished run is not done
again, and an interrupted one goes on after its last epoch. Nothing is timed, as the looks take longer than the repair.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from naive import npd, sau
from purifier_looks import NPDLooks, SAULooks, filter_norms
from record import HERE, Rows, machines
from torch import nn

from unbackdoor.attacks import AllToOne, load_attack
from unbackdoor.bench.worker import Device
from unbackdoor.data import DefenderData, ImageSet, draw_clean, read_images
from unbackdoor.evaluate import evaluate
from unbackdoor.models import load_model
from unbackdoor.options import options_of, revision_of
from unbackdoor.purify import NPD, SAU
from unbackdoor.training import Runtime, Silent, stage
from unbackdoor.training.resume import Resume

CLEAN_SIZE = 2500
BUDGET = 2.0
"""Minutes, as in `grids/purify-small.yaml`."""
TESTED = 2000
"""Test images after each epoch."""
SHOWN = (1, 2, 5, 10, 20, 30, 50, 100)
"""Epochs in the table, beside the last one."""

Kind = Literal["bf16", "fp32", "naive"]
KINDS: tuple[Kind, ...] = ("bf16", "fp32", "naive")
STAGES = {"NPD": ("NPD, warm-up", "NPD"), "SAU": ("SAU",)}
PLAIN = {"NPD": npd.repair, "SAU": sau.repair}
COLUMNS = {
    "NPD": {
        "clean CE": "clean CE",
        "entropy": "entropy of y'",
        "at target": "y' = target",
        "fooled": "taken for y'",
        "p_w": "p_w",
        "p_y'": "p_y'",
        "from identity": "layer from identity",
        "running mean": "running mean",
        "running variance": "running variance",
        "scale": "scale",
        "shift": "shift",
    },
    "SAU": {
        "clean CE": "clean CE",
        "entropy": "entropy of k",
        "at target": "k = target",
        "fooled": "suspect fooled",
        "shared": "shared",
        "p_k": "p_k",
        "moved": "from the suspect",
    },
}
BESIDE = {"pixels alike": "pixels as the plain search", "cosine": "cosine to the plain gradient"}
SHARES = {"acc": "ACC", "asr": "ASR", "ra": "RA"}
PERCENT = frozenset({"at target", "fooled", "shared", "pixels alike", "acc", "asr", "ra"})


class Watch(Silent):
    """Looks at a repair of ours after each epoch.

    Args:
        batches: steps an epoch.
        epochs: that stages had when they began, by description; those of a run that goes on.
        look: called with the stage, the number of finished epochs and that of all.
    """

    def __init__(self, batches: int, epochs: dict[str, int], look: Callable[[str, int, int], None]) -> None:
        self.batches, self.epochs, self.look = batches, epochs, look
        self.resumed: set[str] = set()

    def note(self, text: str) -> None:
        """Note that a stage goes on."""
        self.resumed.add(text.partition(": ")[0])

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        """Count steps."""
        left = total // self.batches
        # The bar of a stage that goes on has the epochs that are left.
        epochs = self.epochs[description] if description in self.resumed else left
        steps = 0

        def advance() -> None:
            nonlocal steps
            steps += 1
            if steps % self.batches == 0:
                self.look(description, epochs - left + steps // self.batches, epochs)

        yield advance


class PlainWatch:
    """Looks at a plain repair after each epoch, and keeps its state: the `Epochs` of `naive.common`.

    Args:
        stages: names, in order.
        resume: file of the states.
        fingerprint: of the run.
        look: called with the stage, the number of finished epochs and that of all.
    """

    def __init__(
        self, stages: Sequence[str], resume: Path, fingerprint: str, look: Callable[[str, int, int], None]
    ) -> None:
        self.stages, self.resume, self.fingerprint, self.look = iter(stages), resume, fingerprint, look

    def __call__(self, count: int, model: nn.Module, optimizer: torch.optim.Optimizer, samples: Any) -> Iterator[int]:
        """Yield the numbers of the epochs that are left."""
        name = next(self.stages)
        file = stage(self.resume, name)
        assert file is not None
        saved = Resume(file, self.fingerprint)
        state = saved.read()
        if state:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            samples.draws.setstate(state["draws"])
        for epoch in range(state["epochs"] if state else 0, count):
            yield epoch
            self.look(name, epoch + 1, count)
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            saved.write({**parts, "draws": samples.draws.getstate(), "epochs": epoch + 1})


@dataclass(frozen=True)
class Run:
    """One repair that is looked at.

    Attributes:
        method: what repairs, with the paper's schedule.
        victim: file in `victims/`, without its ending.
        kind: ours in one of two precisions, or the plain one.
        budget: minutes; None: the whole schedule.
        seed: of clean samples and of all that is drawn.
    """

    method: NPD | SAU
    victim: str
    kind: Kind
    budget: float | None
    seed: int

    @property
    def name(self) -> str:
        """Return the name of the method."""
        return type(self.method).__name__

    @property
    def key(self) -> str:
        """Return what tells it from the others."""
        budget = "none" if self.budget is None else f"{self.budget:g}"
        revision = "".join(f"-revision-{number}" for number in revision_of(self.method).values())
        return f"{self.name}-{self.victim}-{self.kind}-{budget}-{self.seed}{revision}"


class Tracer:
    """Data, and where results go.

    Args:
        train: images that clean samples are drawn from.
        test: images, only to measure.
        rows: results.
        work: folder for the states of interrupted runs.
        device: to compute on.
        threads: of the processor.
    """

    def __init__(self, train: ImageSet, test: ImageSet, rows: Rows, work: Path, device: Device, threads: int) -> None:
        self.train, self.test, self.rows = train, test, rows
        self.work, self.device, self.threads = work, device, threads
        self.some = test.subset(torch.linspace(0, len(test) - 1, min(TESTED, len(test))).long())

    def trace(self, run: Run) -> dict[str, Any]:
        """Do one run, or what is left of it, and return its row."""
        precision: Literal["bf16", "fp32"] = "bf16" if run.kind == "bf16" else "fp32"
        runtime = Runtime(device=self.device, precision=precision, threads=self.threads, seed=run.seed)
        told = runtime.describe()
        file = HERE / "victims" / f"{run.victim}.safetensors"
        loaded = load_model(file)
        attack = load_attack(file.with_suffix(".attack.safetensors"))
        target = attack.criterion.target if isinstance(attack.criterion, AllToOne) else None
        victim = loaded.network.float().to(runtime.place).eval()
        clean = draw_clean(self.train, CLEAN_SIZE, run.seed)
        method = run.method if run.kind != "naive" else self._as_long(run)
        if isinstance(method, NPD):
            looks: NPDLooks | SAULooks = NPDLooks(method, clean, target, runtime)
        else:
            looks = SAULooks(method, victim, clean, target, runtime)
        model = copy.deepcopy(victim).requires_grad_(True)
        seen = Rows(self.work / run.key / "epochs.jsonl")

        def shares(images: ImageSet) -> dict[str, float]:
            # Measuring settles a network in another memory layout.
            found = evaluate(copy.deepcopy(model), images, runtime, attack.trigger, attack.criterion)
            return {name: share["value"] for name, share in found.to_json().items() if name in SHARES}

        def look(name: str, epoch: int, epochs: int) -> None:
            found = {**looks.at(model), **({} if run.kind == "naive" else looks.agreement(model)), **shares(self.some)}
            seen.append({"stage": name, "epoch": epoch, "epochs": epochs, **found})
            print(run.key, name, epoch, f"of {epochs}", f"ASR {100 * found['asr']:.1f} %", flush=True)

        resume = self.work / run.key / "resume.pt"
        before = evaluate(copy.deepcopy(victim), self.test, runtime, attack.trigger, attack.criterion).to_json()
        if run.kind == "naive":
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            torch.manual_seed(run.seed)
            fingerprint = repr((run, method, loaded.sha256, clean.digest()))
            watch = PlainWatch(STAGES[run.name], resume, fingerprint, look)
            PLAIN[run.name](method, model, clean, run.seed, runtime.place, watch)
        else:
            epochs = {row["stage"]: row["epochs"] for row in seen.read()}
            batches = -(-len(clean) // method.batch_size)
            watched = replace(runtime, budget=run.budget, progress=Watch(batches, epochs, look))
            method.repair(model, DefenderData(clean=clean), watched, resume)
        # An epoch that was looked at, but not saved, was done again.
        last = {(row["stage"], row["epoch"]): row for row in seen.read()}
        looked = [{name: one[name] for name in one if name not in ("date", "commit")} for one in last.values()]
        row = self.rows.append(
            {
                **{name: told[name] for name in ("device", "threads", "unbackdoor", "torch", "python")},
                "key": run.key,
                "method": run.name,
                "victim": run.victim,
                "kind": run.kind,
                "budget": run.budget,
                "seed": run.seed,
                "options": options_of(run.method),
                "filters": filter_norms(victim),
                "before": {name: before[name]["value"] for name in SHARES},
                "after": shares(self.test),
                "epochs": looked,
            }
        )
        shutil.rmtree(self.work / run.key)
        return row

    def _as_long(self, run: Run) -> NPD | SAU:
        """Return the method with the epochs that ours has done, where a budget decides them."""
        if run.budget is None:
            return run.method
        done = finished(self.rows)
        ours = [done[key] for kind in KINDS[:2] if (key := replace(run, kind=kind).key) in done]
        if not ours:
            raise SystemExit("under a budget the plain one does as many epochs as ours, which is not traced yet")
        most = [max(_count(row, name) for row in ours) for name in STAGES[run.name]]
        if isinstance(run.method, NPD):
            return replace(run.method, warm_up_epochs=most[0], epochs=most[1])
        return replace(run.method, rounds=most[0])


def finished(rows: Rows) -> dict[str, dict[str, Any]]:
    """Return the finished runs, by key."""
    return {row["key"]: row for row in rows.read()}


def write(rows: Rows) -> Path:
    """Write the table and return its file."""
    table = rows.path.with_suffix(".md")
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(written(list(finished(rows).values())))
    return table


def _count(row: dict[str, Any], name: str) -> int:
    return sum(one["stage"] == name for one in row["epochs"])


def written(rows: Sequence[dict[str, Any]]) -> str:
    """Return the runs as Markdown: each method on each victim, and the victims' filters."""
    lines = [
        "# NPD and SAU, epoch by epoch",
        "",
        "Made by `python benchmarks/purifier_trace.py`: ours in bf16 and in float32, and the plain one"
        f" (`benchmarks/naive/`) on kept victims, with {CLEAN_SIZE} clean images. All looks are by the plain steps in"
        f" float32 on the same clean images; ACC, ASR and RA in percent on {TESTED} test images (RA and ASR on those"
        " that are counted), at the end on all. CE is the cross-entropy, entropies are of how often each class occurs,"
        " in nats, p are means of probabilities on adversarial images, and the rest are shares in percent or relative"
        " distances. *Pixels* and *cosine* compare our search and gradient with the plain ones at the same weights.",
        "",
        *machines(list(rows)),
    ]
    for method, victim in sorted({(row["method"], row["victim"]) for row in rows}):
        group = [row for row in rows if (row["method"], row["victim"]) == (method, victim)]
        names = {**COLUMNS[method], **BESIDE, **SHARES}
        lines += [
            "",
            f"## {method} on {victim}",
            "",
            f"| run | budget | seed | stage | epoch | {' | '.join(names.values())} |",
            f"|---|---:|---:|---|---:|{'---:|' * len(names)}",
        ]
        for row in sorted(group, key=lambda row: (row["budget"] is None, row["seed"], KINDS.index(row["kind"]))):
            lines += _lines(row, list(names))
    lines += ["", "## The victims' filters", "", "L2 norms of the filters of each convolution, as the victim came."]
    for victim, row in sorted({row["victim"]: row for row in rows}.items()):
        lines += ["", f"| {victim} | filters | mean | largest |", "|---|---:|---:|---:|"]
        lines += [
            f"| {one['layer']} | {one['filters']} | {one['mean']:.3f} | {one['most']:.3f} |" for one in row["filters"]
        ]
    return "\n".join(lines) + "\n"


def _lines(row: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of one run: before, some epochs, and the end on all test images."""
    budget = "none" if row["budget"] is None else f"{row['budget']:g}"
    start = [row["kind"], budget, str(row["seed"])]
    yield _line([*start, "before", ""], row["before"], names)
    for one in row["epochs"]:
        if one["epoch"] in SHOWN or one["epoch"] == one["epochs"]:
            yield _line([*start, one["stage"], str(one["epoch"])], one, names)
    yield _line([*start, "end", ""], row["after"], names)


def _line(start: Sequence[str], found: dict[str, Any], names: Sequence[str]) -> str:
    values = [
        "" if name not in found else f"{100 * found[name]:.1f}" if name in PERCENT else f"{found[name]:.3f}"
        for name in names
    ]
    return f"| {' | '.join([*start, *values])} |"


def main() -> None:
    """Do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    victims = sorted(path.name.split(".")[0] for path in (HERE / "victims").glob("*.attack.safetensors"))
    parser.add_argument("--method", choices=list(STAGES))
    parser.add_argument("--victim", choices=victims, metavar="VICTIM", help=f"one of {', '.join(victims)}")
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--precision", choices=KINDS[:2], help="of ours; both, one after the other, if not given")
    parser.add_argument("--no-naive", action="store_true", help="leave the plain one out")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--budget", type=float, default=BUDGET, help=f"minutes; {BUDGET:g} if not given")
    budget.add_argument("--no-budget", dest="budget", action="store_const", const=None, help="the whole schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/purifier_trace"), help="states of interrupted runs")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    if not arguments.table and not (arguments.method and arguments.victim):
        parser.error("--method and --victim are needed, unless only the table is to be written")
    name = "purifier_trace" if arguments.device == "cpu" else f"purifier_trace_{arguments.device}"
    rows = Rows(HERE / "results" / f"{name}.jsonl")
    if not arguments.table:
        train, test = read_images(arguments.data, "train"), read_images(arguments.data, "test")
        tracer = Tracer(train, test, rows, arguments.work, arguments.device, arguments.threads)
        method = NPD() if arguments.method == "NPD" else SAU()
        ours = [arguments.precision] if arguments.precision else KINDS[:2]
        for kind in (*ours, *(() if arguments.no_naive else KINDS[2:])):
            run = Run(method, arguments.victim, kind, arguments.budget, arguments.seed)
            if run.key not in finished(rows):
                tracer.trace(run)
                write(rows)
    print(write(rows))


if __name__ == "__main__":
    main()
