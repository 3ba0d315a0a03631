"""`unbackdoor sift` on a folder of parquet files that are not held at once."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from unbackdoor.commands.outcome import INCONCLUSIVE, Outcome
from unbackdoor.commands.workspace import Run, new_folder, remove_states
from unbackdoor.data.cleaned import becoming
from unbackdoor.data.shards import Shards
from unbackdoor.errors import InputError, UnknownClassesError
from unbackdoor.folder import PAGE, RESUME, SUSPICION, TABLES
from unbackdoor.models import LoadedModel, load_model
from unbackdoor.models.mark import notes_of
from unbackdoor.options import options_of
from unbackdoor.report import (
    Report,
    ranking_verdict,
    sharded_chart,
    sharded_galleries,
    sharded_top,
    write_report,
)
from unbackdoor.sift import SIFTERS, Sifter
from unbackdoor.sift.row_sifter import RowSifter
from unbackdoor.sift.sharded import Place, ShardedSuspicion, Workers, sift_shards
from unbackdoor.training import check_fits

LOOK = 100
"""Rows that are looked at for the shape of images, where a model's file does not tell it."""


def sift_files(
    clock: Run,
    *,
    data: str,
    method: Sifter,
    model: Path | None,
    clean_out: Path | None,
    arch: str | None,
    out: Path | None,
    sample: int,
    address: str | None,
    gpus_per_worker: float | None,
) -> Outcome:
    """Sift file by file; the options are those of `sift.run`."""
    by_rows = _row_by_row(method, data, sample)
    runtime, shards = clock.runtime, Shards.of(data)
    loaded = None if model is None else _open(model, arch, shards)
    with (
        new_folder(out or Path("runs") / f"sift-{shards.digest()[:8]}", clock.command) as folder,
        Workers(address=address, gpus=gpus_per_worker, runtime=runtime) as workers,
    ):
        # Seen last: once it is there the same command is refused, and so could not go on after an interruption.
        with nullcontext() if clean_out is None else becoming(clean_out.absolute()) as cleaned:
            found = sift_shards(
                shards,
                by_rows,
                runtime,
                workers,
                folder / TABLES,
                model=None if loaded is None else loaded.network,
                sample=sample,
                clean_out=cleaned,
                resume=folder / RESUME,
            )
            clock.inputs = {shards.name: found.digest}
            if loaded is not None and model is not None:
                clock.inputs[model.name] = loaded.sha256
            clock.options = {"method": options_of(method)}
            write_report(folder / PAGE, files_page(clock, loaded, by_rows, shards, found, clean_out))
            clock.write(folder, suspicion=found.to_json(), files=len(shards.shards))
            # An earlier answer, when the data were held at once.
            (folder / SUSPICION).unlink(missing_ok=True)
        remove_states(folder / RESUME)
    return _outcome(clock, shards, found, folder, clean_out)


def _row_by_row(method: Sifter, data: str, sample: int) -> RowSifter:
    """Return the method, if it and the options are for sifting file by file.

    Raises:
        InputError: they are not.
    """
    if not isinstance(method, RowSifter):
        others = " or ".join(name for name in SIFTERS if issubclass(SIFTERS[name], RowSifter))
        raise InputError(
            f"{data} has more images than are held at once, and {type(method).__name__} needs all rows at once; choose"
            f" --method {others}, which score row by row, or say by --in-memory how many rows may be held"
        )
    if sample < 2:
        raise InputError(f"--sample must be 2 rows or more, found {sample}")
    return method


def _outcome(clock: Run, shards: Shards, found: ShardedSuspicion, folder: Path, clean_out: Path | None) -> Outcome:
    """Return the end of the command."""
    held = found.to_json()["held"]
    return Outcome(
        code=INCONCLUSIVE,
        title=f"sifting of {shards.name}",
        rows=[
            ("held poisoned", f"{held['poisoned']} of {found.rows} rows"),
            ("held clean", str(held["clean"])),
            ("undecided", str(held["undecided"])),
            ("calibrated", "no: the share of clean rows held poisoned is not known"),
            ("files", f"{len(shards.shards)}, of which {found.kept} had been scored before"),
            ("time", f"{clock.seconds:.0f} s"),
            ("rows", str(folder / TABLES)),
            *([("cleaned data", str(clean_out))] if clean_out is not None else []),
        ],
        result={
            "tables": str(folder / TABLES),
            "files": len(shards.shards),
            "files_kept": found.kept,
            "cleaned": None if clean_out is None else str(clean_out),
            **found.to_json(),
        },
        sentence=found.summary,
        page=folder / PAGE,
    )


def _open(model: Path, arch: str | None, shards: Shards) -> LoadedModel:
    """Read the model for these files (see `workspace.open_model`)."""
    try:
        loaded = load_model(model, arch=arch)
    except UnknownClassesError:
        # Of several rows: the first may be grey among coloured ones.
        shape = shards.sample(LOOK, 0).shape
        loaded = load_model(model, arch=arch, classes=shards.class_names, image_shape=shape)
        note = f"the file does not tell classes and size of images: taken from {shards.name}"
        loaded = replace(loaded, notes=(*loaded.notes, note))
    check_fits(loaded.network, shards.first(loaded.network.description.image_shape[0]))
    return loaded


def files_page(
    clock: Run,
    loaded: LoadedModel | None,
    method: RowSifter,
    shards: Shards,
    found: ShardedSuspicion,
    clean_out: Path | None,
) -> Report:
    """Return the report of a sifting file by file."""
    steps = [
        "Look at the images above: what do those of one class have in common that its other images lack?",
        f"`{TABLES}/` has a table for each file, with the score of every row.",
    ]
    if clean_out is None:
        steps.append("Write the files without the rows held poisoned: the same command with `--clean-out FOLDER`.")
    learned = f"{found.sample:,} rows, drawn from all files alike" if found.sample else "no rows"
    return Report(
        title=f"Sifting of {shards.name.split('/')[0]}",
        verdict=ranking_verdict(type(method).__name__, found.summary),
        galleries=sharded_galleries(found, shards.class_names, shown_images(shards, found)),
        charts=[sharded_chart(found)],
        facts=clock.facts(),
        next_steps=steps,
        notes=[
            f"The data were sifted file by file; what had to be learned was learned from {learned}.",
            "The model was trained for this purpose on the data themselves."
            if loaded is None
            else "The model was given; what it was trained on is the caller's word.",
            "Rows held clean are those with the least evidence, not proven ones.",
            *(notes_of(loaded) if loaded is not None else []),
        ],
    )


def shown_images(shards: Shards, found: ShardedSuspicion) -> dict[Place, UInt8[Tensor, "c h w"]]:
    """Read the images that a page shows."""
    wanted: dict[str, list[int]] = {}
    for top in sharded_top(found).values():
        for one in top:
            wanted.setdefault(one.shard, []).append(one.row)
    rows = {name: np.sort(numbers) for name, numbers in wanted.items()}
    places = [(shard.name, int(row)) for shard in shards.shards for row in rows.get(shard.name, ())]
    return dict(zip(places, shards.at(rows).images, strict=True))
