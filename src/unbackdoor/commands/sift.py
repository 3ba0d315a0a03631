"""Ask which rows of a data set are poisoned, from the data alone or with a model that was trained on them.

Writes suspicion.parquet (row, label, class_name, score, suspicion, reason), run.json and report.html. Exit code 1 if
rows are held poisoned, 0 if none are, 3 if the method always holds a share of the rows poisoned, and so cannot say.

A folder of parquet files with more rows than --in-memory is sifted file by file, on this machine or on a Ray cluster:
then suspicion/ has a table for each file, with the file's name as `shard`, and finished files are not scored again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unbackdoor.commands.outcome import BACKDOORED, INCONCLUSIVE, NO_EVIDENCE, Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.sifted_files import sift_files
from unbackdoor.commands.workspace import Run, new_folder, open_model, remove_states
from unbackdoor.data import DefenderData, ImageSet, draw_clean, read_images
from unbackdoor.data.cleaned import check_target, write_kept
from unbackdoor.data.shards import declared_rows, too_many
from unbackdoor.errors import InputError
from unbackdoor.folder import PAGE, RESUME, SUSPICION
from unbackdoor.models import LoadedModel, Network
from unbackdoor.models.mark import notes_of
from unbackdoor.options import options_of
from unbackdoor.report import Report, suspicion_chart, suspicion_verdict, suspicious_galleries, write_report
from unbackdoor.sift import SIFTERS, Sifter, Suspicion
from unbackdoor.sift.sharded.sifting import SAMPLE
from unbackdoor.sift.table import write_table
from unbackdoor.training import Runtime, check_fits

CHOICES = {"method": Choice(SIFTERS, "Consensus")}


def run(
    *,
    data: str,
    method: Sifter,
    runtime: Runtime,
    model: Path | None = None,
    clean: str | None = None,
    clean_size: int = 2500,
    clean_out: Path | None = None,
    arch: str | None = None,
    out: Path | None = None,
    in_memory: int | None = None,
    sample: int = SAMPLE,
    address: str | None = None,
    gpus_per_worker: float | None = None,
) -> Outcome:
    """Sift a data set.

    Args:
        data: the untrusted images: a folder (parquet or a folder a class), an .npz, digits, or a hub id. Of a source
            with splits the training split, otherwise all of it.
        method: how.
        runtime: device, seed, budget, progress.
        model: checkpoint trained on these data; by default one is trained, quickly, and thrown away.
        clean: clean images of the same classes, for methods that can use them; refused by the others.
        clean_size: clean images used, drawn class-balanced by the seed; all if there are fewer.
        clean_out: new folder for the data without the rows held poisoned, in the layout that they came in.
        arch: architecture of a file that does not name one: a network's name or module:function.
        out: folder for the results, in which an interrupted run goes on; by default runs/sift- and the beginning of
            the data's SHA-256.
        in_memory: rows that are held at once; a folder of parquet files with more is sifted file by file, by a method
            that scores rows one by one. 0: it always is. By default as many as fill 2 GiB, and 10,000 of any size.
        sample: file by file: rows, at most, from which is learned, drawn from all files alike; never more than fill
            2 GiB.
        address: file by file: a Ray cluster, such as 10.0.0.1:6379; by default this machine. All its machines must
            find the data, --out and --clean-out under the same path.
        gpus_per_worker: file by file: GPUs of a process, such as 0.25; by default 1 where there are GPUs. Its cores
            are --threads, by default 1.
    """
    clock = Run("sift", runtime)
    if clean_out is not None:
        # A mistake is found before the work, not after it.
        check_target(clean_out, data)
    if arch is not None and model is None:
        raise InputError("--arch names the architecture of a model's file; name the file with --model, or leave it out")
    if clean is not None and not method.uses_clean:
        users = " or ".join(name for name, one in SIFTERS.items() if one.uses_clean)
        raise InputError(f"{type(method).__name__} uses no clean images; leave --clean out, or choose --method {users}")
    if too_many(data) if in_memory is None else declared_rows(data) > in_memory:
        return sift_files(
            clock,
            data=data,
            method=method,
            model=model,
            clean_out=clean_out,
            arch=arch,
            out=out,
            sample=sample,
            address=address,
            gpus_per_worker=gpus_per_worker,
        )
    if address is not None or gpus_per_worker is not None:
        raise InputError(
            "--address and --gpus-per-worker are for data that are sifted file by file; leave them out, or name a"
            " folder of parquet files and let --in-memory be fewer than its rows"
        )
    given = _read(data, model, arch, clean, clean_size, runtime)
    digest = given.rows.digest()
    with new_folder(out or Path("runs") / f"sift-{digest[:8]}", clock.command) as folder:
        known = DefenderData(untrusted=given.rows, clean=given.samples)
        found = method.score(known, runtime, given.network, folder / RESUME)
        _record(clock, given, digest, model, method)
        _write(folder, clock, given, method, found, clean_out)
        # Last: once it is there the same command is refused, and so could not go on after an interruption.
        cleaned = None if clean_out is None else write_kept(data, given.rows, ~found.poisoned, clean_out)
        remove_states(folder / RESUME)
    return _outcome(clock, given.rows, method, found, folder, cleaned)


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What the command is given, read.

    Attributes:
        loaded: the model, or None.
        rows: the untrusted data.
        samples: clean ones, or None.
    """

    loaded: LoadedModel | None
    rows: ImageSet
    samples: ImageSet | None

    @property
    def network(self) -> Network | None:
        """That of the model, if there is one."""
        return None if self.loaded is None else self.loaded.network


def _read(
    data: str, model: Path | None, arch: str | None, clean: str | None, clean_size: int, runtime: Runtime
) -> _Given:
    """Read data and model, and check that they fit; the options are those of `run`."""
    loaded, rows = (None, read_images(data, "any")) if model is None else open_model(model, arch, data, "any")
    samples = None if clean is None else draw_clean(read_images(clean, "train"), clean_size, runtime.seed)
    if loaded is not None:
        check_fits(loaded.network, samples)
    return _Given(loaded=loaded, rows=rows, samples=samples)


def _record(clock: Run, given: _Given, digest: str, model: Path | None, method: Sifter) -> None:
    """Tell the clock what the answer is of."""
    clock.inputs = {given.rows.name: digest}
    if given.loaded is not None and model is not None:
        clock.inputs[model.name] = given.loaded.sha256
    if given.samples is not None:
        clock.inputs[f"clean: {given.samples.name}"] = given.samples.digest()
    clock.options = {"method": options_of(method)}


def _write(folder: Path, clock: Run, given: _Given, method: Sifter, found: Suspicion, clean_out: Path | None) -> None:
    """Write table, page and record of an answer."""
    write_table(folder / SUSPICION, given.rows, found)
    write_report(folder / PAGE, sift_page(clock, given.loaded, method, given.rows, found, clean_out))
    clock.write(folder, suspicion=found.to_json())


def _outcome(
    clock: Run, rows: ImageSet, method: Sifter, found: Suspicion, folder: Path, cleaned: Path | None
) -> Outcome:
    """Return the end of the command; `cleaned` names the cleaned data as a source, if there are any."""
    held = found.to_json()["held"]
    return Outcome(
        code=exit_code(found, method),
        title=f"sifting of {rows.name}",
        rows=[
            ("held poisoned", f"{held['poisoned']} of {len(rows)} rows"),
            ("held clean", str(held["clean"])),
            ("undecided", str(held["undecided"])),
            ("calibrated", "no: the share of clean rows held poisoned is not known"),
            ("time", f"{clock.seconds:.0f} s"),
            ("rows", str(folder / SUSPICION)),
            *([("cleaned data", str(cleaned))] if cleaned is not None else []),
        ],
        result={
            "table": str(folder / SUSPICION),
            "cleaned": None if cleaned is None else str(cleaned),
            **found.to_json(),
        },
        sentence=found.summary,
        page=folder / PAGE,
    )


def exit_code(found: Suspicion, method: Sifter) -> int:
    """Return the exit code of an answer."""
    if method.always:
        return INCONCLUSIVE
    return BACKDOORED if bool(found.poisoned.any()) else NO_EVIDENCE


def sift_page(
    clock: Run,
    loaded: LoadedModel | None,
    method: Sifter,
    rows: ImageSet,
    found: Suspicion,
    clean_out: Path | None,
) -> Report:
    """Return the report of a sifting."""
    name = rows.name.split("/")[0]
    steps = [
        "Look at the images above: what do those of one class have in common that its other images lack?",
        "`suspicion.parquet` has the score of every row.",
    ]
    if clean_out is None:
        steps.append("Write the data without the rows held poisoned: the same command with `--clean-out FOLDER`.")
    return Report(
        title=f"Sifting of {name}",
        verdict=suspicion_verdict(found, method),
        galleries=suspicious_galleries(found, rows),
        charts=[suspicion_chart(found)],
        facts=clock.facts(),
        next_steps=steps,
        notes=[
            "The model was trained for this purpose on the data themselves."
            if loaded is None
            else "The model was given; what it was trained on is the caller's word.",
            "Rows held clean are those with the least evidence, not proven ones.",
            *(notes_of(loaded) if loaded is not None else []),
        ],
    )
