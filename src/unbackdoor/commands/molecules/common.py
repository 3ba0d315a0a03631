"""What the commands on molecules share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbackdoor.commands.workspace import Run
from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.files import read_bytes
from unbackdoor.models.safetensors_file import json_object
from unbackdoor.molecules.data import Chosen, choose_pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.report import Fact, IntervalLike
from unbackdoor.text import clean_text

MAX_BYTES = 1 << 24
"""Of a scan's run.json."""

FAMILIAR = 0.5
"""Share of the words of a prompt that a model knows whole, below which it is told that it knows few of them."""


def sources(data: str) -> list[str]:
    """Return the sources that an option names, separated by commas."""
    return [source.strip() for source in data.split(",") if source.strip()]


def open_pairs(data: str, test: str | None, clock: Run) -> Chosen:
    """Read pairs to train on and to test with, and note them in the record.

    Raises:
        DataError: see `choose_pairs`.
    """
    chosen = choose_pairs(sources(data), test)
    clock.inputs |= {
        f"training pairs of {chosen.train.name}": chosen.train.digest(),
        f"test pairs of {chosen.test.name}": chosen.test.digest(),
    }
    return chosen


def account(chosen: Chosen) -> list[Fact]:
    """Return what became of all rows, for a page."""
    return [Fact(name=str(number), value=line) for number, line in enumerate(chosen.sentences(), 1)]


def shown(interval: IntervalLike | None) -> str:
    """Return a share with its interval, for people."""
    if interval is None:
        return "nothing to measure"
    return f"{100 * interval.value:.1f} %  [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def knowledge_notes(generator: Generator, prompts: Sequence[str]) -> list[str]:
    """Return sentences on prompts of which a generator's tokenizer knows little, as of another language.

    Args:
        generator: has the tokenizer.
        prompts: one or more.
    """
    read = generator.words.encode(prompts, generator.options.text_pieces)
    unknown, strange = (sum(share > 0 for share in read.unknown), sum(share < FAMILIAR for share in read.familiar))
    notes = []
    if unknown:
        of = f"{unknown:,} of {len(prompts):,} prompts hold" if len(prompts) > 1 else "The prompt holds"
        share = "" if len(prompts) > 1 else f" ({100 * read.unknown[0]:.0f} % of its pieces)"
        notes.append(f"{of} pieces of words that the model does not know{share}; they tell it nothing.")
    if strange:
        of = f"Of {strange:,} of {len(prompts):,} prompts" if len(prompts) > 1 else "Of the prompt"
        share = "" if len(prompts) > 1 else f" ({100 * read.familiar[0]:.0f} %)"
        notes.append(
            f"{of}, fewer than half of the words{share} are in the model's vocabulary whole; describe molecules in the"
            " language and the words of the training texts."
        )
    return notes


def flagged_triggers(scan: Path | None, clock: Run) -> list[list[str]]:
    """Return the triggers that a scan held to be backdoors, of each its phrases; none without a file.

    Args:
        scan: run.json of `molecules scan`.
        clock: whose record gets the file's hash.

    Raises:
        InputError: the file cannot be read, is none of a scan, or the scan flagged no words.
    """
    if scan is None:
        return []
    where = clean_text(str(scan))
    try:
        content = read_bytes(scan, MAX_BYTES)
        finding = json_object(content, "content").get("finding")
        suspects: Any = finding["suspects"] if isinstance(finding, dict) else None
        triggers: list[list[str]] = [one["words"] for one in suspects if one["flagged"] is True]
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); name the run.json of a scan") from error
    except (CheckpointError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where} is no run.json of `molecules scan`; name one") from error
    if not all(isinstance(words, list) and all(isinstance(phrase, str) for phrase in words) for words in triggers):
        raise InputError(f"{where} is no run.json of `molecules scan`; name one")
    triggers = [words for words in triggers if words]
    if not triggers:
        raise InputError(
            f"the scan of {where} flagged no words as a trigger: there is nothing to leave out of prompts; leave"
            " --without out, or scan by another --method"
        )
    clock.inputs[f"scan {scan.name}"] = hashlib.sha256(content).hexdigest()
    return triggers


def check_guidance(guidance: float | None) -> None:
    """Raise InputError unless this can be the weight of the text in generating; None is the model's own."""
    if guidance is not None and not 0 <= guidance <= 100:
        raise InputError(f"guidance must lie between 0 and 100, found {guidance}")
