"""The program that calibrates the verdict: tables and pages come from its lines alone, whatever they were made by."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unbackdoor.attacks import ATTACKS
from unbackdoor.bench.zoo import INDEX, plan, rows_of
from unbackdoor.bench.zoo_scans import SAID, SCANS, scan_key
from unbackdoor.errors import InputError
from unbackdoor.scan import TSBDSignals
from unbackdoor.scan.verdict import DETECTORS


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, which is run as a file and finds its neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import zoo

        yield zoo


def lines(clean_size: int, detectors: tuple[Any, ...], rounds: int = 76) -> list[dict[str, Any]]:
    """Return lines as the program writes them; the target of a backdoored model stands out."""
    made = []
    for entry in plan("digits", ["BadNets", "SIG"], rounds):
        draws = torch.Generator().manual_seed(zlib.crc32(entry.key.encode()))
        anomaly = torch.randn(10, generator=draws)
        anomaly[3] += 9 * (entry.attack is not None)
        row = {"key": entry.key, **vars(entry), "part": "held-out", "sha256": "0"}
        row["backdoored"] = entry.attack is not None
        row |= {"target": entry.attack and 3, "acc": 0.99, "asr": entry.attack and 1.0}
        row["made"] = {"size": 1400, "recipe": {"epochs": 8}, "precision": "bf16"}
        plain = {
            "anomaly": anomaly.tolist(),
            "numbers": [anomaly.tolist()],
            "threshold": 3.5,
            "flagged": False,
            "suspected": [],
        }
        scans = [
            {
                **plain,
                "key": scan_key(row, one, clean_size),
                "detector": type(one).__name__,
                "model": entry.key,
                "clean_size": clean_size,
            }
            for one in detectors
        ]
        facts = {"kind": "digits", "classes": list("0123456789"), "shape": [1, 32, 32]}
        facts |= {"device": "cpu", "threads": "1", "torch": "2"}
        made.append({**facts, "clean_size": clean_size, "row": row, "scans": scans})
    return made


def test_lines_of_two_sizes_give_four_tables_and_two_pages(program: ModuleType) -> None:
    given = lines(50, DETECTORS[:3]) + lines(250, DETECTORS)
    failed = {"key": "x", "network": "WRN16x1", "attack": "CTRL", "backdoored": None}
    given.append({**given[0], "row": failed, "scans": []})
    few, ways = program.calibrate("digits", given, 50)
    many, _ = program.calibrate("digits", given, 250)
    assert [(one.architecture, one.clean_size) for one in few + many] == [
        *(("PreActResNet18", 50), ("WRN16x1", 50)),
        *(("PreActResNet18", 250), ("WRN16x1", 250)),
    ]
    # Lines of before have three detectors.
    assert few[0].detectors == DETECTORS[:3]
    assert many[0].detectors == DETECTORS
    # The rows say "held-out" of all; the entries have parts.
    assert [one.clean_models for one in few] == [19, 19]
    page = program.page("digits", 50, few, ways, given)
    assert "1400 training images, 8 epochs, scanned with images new to the model" in page
    assert "| Verdict | 1.000 | 38 of 38 |" in page
    assert "at least once: CTRL." in page


def test_scans_with_other_options_or_of_another_revision_are_not_in_the_table(program: ModuleType) -> None:
    old = dataclasses.replace(DETECTORS[1], steps=7)  # type: ignore[call-arg]
    given = lines(50, (DETECTORS[0], old, DETECTORS[4]))
    for line in given:
        (scan,) = (one for one in line["scans"] if one["detector"] == "TSBDSignals")
        before = f"revision {TSBDSignals.revision} "
        assert before in scan["key"]
        scan["key"] = scan["key"].replace(before, "")
    tables, _ = program.calibrate("digits", given, 50)
    for table in tables:
        assert table.detectors == DETECTORS[:1]
        assert table.clean.keys() == {"WeightStatistics"}


def test_a_network_of_which_few_models_are_there_yet_is_left_out(program: ModuleType) -> None:
    given = [
        line
        for number, line in enumerate(lines(50, DETECTORS[:2]))
        if line["row"]["network"] == "PreActResNet18" or number < 40
    ]
    tables, ways = program.calibrate("digits", given, 50)
    assert [(one.architecture, one.rate) for one in tables] == [("PreActResNet18", 0.05)]
    page = program.page("digits", 50, tables, ways, given)
    assert "WRN16x1" not in page
    with pytest.raises(InputError, match="no network has clean models enough yet"):
        program.calibrate("digits", given[:20], 50)


def test_a_zoo_goes_on_from_its_lines_where_its_folder_is_gone(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ROWS", tmp_path / "zoo.jsonl")
    other = {"kind": "gtsrb", "row": {"key": "other"}, "scans": []}
    few, many = lines(50, DETECTORS, rounds=2), lines(250, DETECTORS, rounds=2)
    ways = {line["row"]["key"]: line["row"]["made"] for line in few}
    key, _, changed, failed = (line["row"]["key"] for line in few)
    # A detector has not looked, another recipe, and an attack that failed.
    many[1]["scans"].pop()
    ways[changed] = {**ways[changed], "size": 7}
    few[3] = {**few[3], "row": {**few[3]["row"], "backdoored": None}, "scans": []}
    given = [*few, *many[:3]]
    for _ in range(2):
        program.restore(tmp_path, given, ways, (50, 250))
        assert [row["key"] for row in rows_of(tmp_path / INDEX)] == [key, failed]
        assert len(rows_of(tmp_path / SCANS, SAID)) == 2 * len(DETECTORS)
    # The lines come out as they went in, beside those of another kind.
    program.ROWS.write_text(json.dumps(other))
    facts = {name: few[0][name] for name in ("kind", "classes", "shape", "device", "threads", "torch")}
    failed_line = {name: value for name, value in few[3].items() if name != "clean_size"}
    program.write_lines("digits", facts, rows_of(tmp_path / INDEX), (50, 250), tmp_path)
    assert program.read_lines() == [other, *json.loads(json.dumps([few[0], many[0], failed_line]))]


def test_every_kind_has_clean_models_enough_for_a_rate_of_five_percent(program: ModuleType) -> None:
    for name, kind in program.KINDS.items():
        entries = plan(name, kind.attacks, kind.rounds)
        for network in {entry.network for entry in entries}:
            own = [entry for entry in entries if entry.network == network and entry.attack is None]
            assert sum(entry.part == "reference" for entry in own) >= 19, name
        assert kind.recipe.low_resolution == 0, "a small patch has to stay whole"
        if name != "digits":
            # Of 98 attacks on the digits 40 failed; were it as many here, 60 are to be left to judge by. Where attacks
            # are named, it is those that work.
            judged = [entry for entry in entries if entry.attack is not None and entry.part == "held-out"]
            work = 1 if len(kind.attacks) < len(ATTACKS) else 1 - 40 / 98
            assert len(judged) * work >= 60, name
