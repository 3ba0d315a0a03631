"""What the files of a run are called, whichever command or cell of a grid writes them."""

from __future__ import annotations

MODEL, ATTACK, ROWS, RESUME, WORK, RUN, PAGE, LOCK, SUSPICION = (
    "model.safetensors",
    "attack.safetensors",
    "poisoned-rows.safetensors",
    "resume.pt",
    "preparation",
    "run.json",
    "report.html",
    ".lock",
    "suspicion.parquet",
)
"""Names of the files in a run's folder."""

MOLECULE_ATTACK = "attack.json"
"""Name of the attack on a generator, beside it and in a folder of poisoned pairs."""

TABLES = "suspicion"
"""Folder of the tables of data that were sifted file by file."""
