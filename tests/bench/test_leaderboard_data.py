"""From cells to the leaderboard's figures, and to tables for other programs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bench.records import record, repaired, scanned, secured, sifted, trained
from unbackdoor.bench.export import write_cells, write_ranking, write_scanners, write_sifters, write_trainers
from unbackdoor.bench.leaderboard import NOTES, leaderboard
from unbackdoor.bench.standings import ranking
from unbackdoor.bench.store import Record
from unbackdoor.bench.table import cell_table, trials
from unbackdoor.errors import InputError, OutputError
from unbackdoor.report.leaderboard import Curve, Estimate, Leaderboard, Row, ScannerRow, Selection, Standing
from unbackdoor.report.packing import packed


def board_of(records: list[Record]) -> Leaderboard:
    """Return the board, once it is proved that its page can be made."""
    board = leaderboard(cell_table(records), "A board")
    assert packed(board)
    return board


def whole(board: Leaderboard) -> Selection:
    """Return what is shown while no filter is set."""
    return board.selections[("",) * len(board.filters)]


def row(selection: Selection, method: str) -> Row:
    (found,) = [one for one in selection.methods if one.method == method]
    return found


def test_a_methods_row_has_the_means_of_its_cells() -> None:
    board = board_of(
        [
            trained(),
            repaired("FT", 0.75, acc=0.8, asr=0.2, ra=0.7, attack="BadNets"),
            repaired("FT", 0.25, acc=0.9, asr=0.6, ra=0.1, attack="SIG"),
            repaired("SAU", 0.875, attack="BadNets"),
            repaired("SAU", 0.875, attack="SIG"),
        ]
    )
    assert [one.method for one in whole(board).methods] == ["SAU", "FT"]
    assert whole(board).blocks == 2
    found = row(whole(board), "FT")
    assert found.der == Estimate(value=0.5)
    assert found.rank == Estimate(value=2, low=2, high=2)
    assert (found.blocks, found.seconds, found.peak_mb) == (2, 20, 300)
    assert [one and one.value for one in (found.acc, found.asr, found.ra)] == pytest.approx([0.85, 0.4, 0.4])
    assert {attack: {name: one.value for name, one in shares.items()} for attack, shares in found.attacks.items()} == {
        "BadNets": {"acc": 0.8, "asr": 0.2, "ra": 0.7, "der": 0.75},
        "SIG": {"acc": 0.9, "asr": 0.6, "ra": 0.1, "der": 0.25},
    }
    assert board.attacks == ["BadNets", "SIG"]


def test_an_interval_needs_seeds_and_a_rank_with_an_interval_blocks() -> None:
    alone = row(whole(board_of([repaired("FT", 0.5)])), "FT")
    assert alone.der == Estimate(value=0.5)
    assert alone.rank == Estimate(value=1)
    seeds = row(whole(board_of([repaired("FT", der, seed=seed) for seed, der in enumerate((0.5, 0.6, 0.7))])), "FT")
    assert seeds.rank == Estimate(value=1)
    assert seeds.der is not None
    assert seeds.der.low is not None
    assert seeds.der.high is not None
    assert seeds.der.low < 0.5 < seeds.der.value < 0.7 < seeds.der.high


def test_the_der_that_is_shown_is_the_one_by_which_methods_are_ranked() -> None:
    """One block has three seeds, the other lost two: each block counts once, for the rank and for the mean."""
    ragged = [*(repaired("A", 1.0, data="a", seed=seed) for seed in range(3)), repaired("A", 0.5, data="b")]
    steady = [*(repaired("B", 0.8125, data="a", seed=seed) for seed in range(3)), repaired("B", 0.8125, data="b")]
    rows = whole(board_of([*ragged, *steady])).methods
    assert [one.method for one in rows] == ["B", "A"]
    ders = [one.der.value for one in rows if one.der]
    assert ders == sorted(ders, reverse=True)
    assert ders == pytest.approx([0.8125, 0.75])


def test_filters_are_the_axes_that_vary_in_what_is_done_with_victims() -> None:
    board = board_of(
        [
            trained(network="VGG19BN"),
            *(
                repaired("FT", 0.5, clean_size=size, budget=budget)
                for size in (1000, 50, 200)
                for budget in (5.0, None, 0.5)
            ),
        ]
    )
    assert [(one.name, one.title, list(one.values)) for one in board.filters] == [
        ("clean_size", "Clean samples", ["50", "200", "1000"]),
        ("budget", "Budget (minutes)", ["none", "0.5", "5"]),
    ]
    assert len(board.selections) == 4 * 4


def test_every_value_of_a_filter_stands_in_the_cells_as_the_page_looks_for_it() -> None:
    """A number is found by its value, a missing label by the word none."""
    records = [repaired("FT", 0.5, budget=budget, poison_rate=rate) for budget in (None, 5.0) for rate in (0.1, 0.003)]
    board = board_of(records)
    assert [list(one.values) for one in board.filters] == [["0.003", "0.1"], ["none", "5"]]
    for one in board.filters:
        place = list(board.columns).index(one.name)
        assert {cell[place] for cell in board.cells} == {None if text == "none" else float(text) for text in one.values}


def test_a_choice_shows_the_cells_that_fit_it_and_no_others() -> None:
    records = [
        repaired(method, der, attack=attack, clean_size=size)
        for method, attack, size, der in (
            ("FT", "BadNets", 50, 0.1),
            ("FT", "BadNets", 100, 0.2),
            ("FT", "SIG", 50, 0.3),
            ("SAU", "BadNets", 50, 0.4),
        )
    ]
    board = board_of(records)
    assert [one.name for one in board.filters] == ["attack", "clean_size"]

    def ders(*choice: str) -> dict[str, float]:
        return {one.method: round(one.der.value, 9) for one in board.selections[choice].methods if one.der}

    assert ders("", "") == {"SAU": 0.4, "FT": 0.2}
    assert ders("BadNets", "") == ders("", "50") == {"SAU": 0.4, "FT": 0.1}, "of what both have"
    assert ders("BadNets", "50") == {"SAU": 0.4, "FT": 0.1}
    assert ders("BadNets", "100") == {"FT": 0.2}
    assert ders("SIG", "") == ders("SIG", "50") == {"FT": 0.3}
    assert ("SIG", "100") not in board.selections, "nothing was measured there"
    assert row(board.selections["BadNets", "50"], "SAU").rank == Estimate(value=1)
    assert row(board.selections["BadNets", ""], "FT").rank == Estimate(value=2)
    assert [one.rank for one in board.selections["", ""].methods] == [None, None], "of SAU there is too little"
    assert row(board.selections["SIG", ""], "FT").rank == Estimate(value=1)


def test_attacks_and_values_keep_their_names_whatever_these_are() -> None:
    board = board_of([repaired("A & B", 0.5, attack="None"), repaired("nan", 0.5, attack="nan"), repaired("", 0.5)])
    assert board.attacks == ["BadNets", "None", "nan"]
    assert {one.method for one in whole(board).methods} == {"A & B", "nan", ""}


def test_scanners_are_judged_by_what_the_models_are() -> None:
    board = board_of(
        [
            scanned("NC", backdoored=True, flagged=True, first=True, attack="BadNets"),
            scanned("NC", backdoored=True, flagged=True, first=False, attack="SIG"),
            scanned("NC", backdoored=True, flagged=False, first=True, attack="WaNet"),
            scanned("NC", backdoored=True, flagged=None, first=False, attack="LF"),
            scanned("NC", backdoored=False, flagged=True),
            scanned("NC", backdoored=False, flagged=False, seed=1),
            scanned("NC", backdoored=False, flagged=False, seed=2),
            scanned("NC", backdoored=False, flagged=None, seed=3),
            scanned("Other", backdoored=True, flagged=False),
            repaired("FT", 0.5),
        ]
    )
    first, second = whole(board).scanners
    assert (first.method, second.method) == ("NC", "Other")
    assert (first.backdoored, first.flagged, first.target_first, first.targeted) == (4, 2, 2, 4)
    assert (first.clean, first.false_alarms, first.inconclusive) == (4, 1, 2)
    assert first.seconds == 20
    assert (second.backdoored, second.flagged, second.targeted) == (1, 0, 0), "no victim had one target"
    assert (second.clean, second.false_alarms, second.inconclusive) == (0, 0, 0)
    choice = {one.name: place for place, one in enumerate(board.filters)}["attack"]
    clean = tuple("None" if place == choice else "" for place in range(len(board.filters)))
    (scanner,) = board.selections[clean].scanners
    assert (scanner.backdoored, scanner.clean, scanner.false_alarms, scanner.inconclusive) == (0, 4, 1, 1)


def test_a_scanner_that_never_decides_is_inconclusive_and_nothing_else() -> None:
    (scanner,) = whole(board_of([scanned("NC", backdoored=True, flagged=None)])).scanners
    assert (scanner.backdoored, scanner.flagged, scanner.inconclusive) == (1, 0, 1)
    assert scanner.targeted == 0


def values(row: Standing) -> dict[str, float]:
    return {name: round(estimate.value, 9) for name, estimate in row.figures.items()}


def test_sifters_are_ranked_by_auroc_and_judged_on_clean_data_too() -> None:
    records = [
        sifted("FCT", 0.75, tpr=0.25, attack="BadNets"),
        sifted("FCT", 0.5, tpr=0.75, attack="SIG"),
        sifted("FCT", None, fpr=0.25),
        sifted("Consensus", 0.875, attack="BadNets"),
        sifted("Consensus", 0.875, attack="SIG"),
        record("quick", {"seconds": 5.0}, training=None),
        record("poison", {"poisoned_rows": 100.0}, training=None),
    ]
    board = board_of(records)
    assert [one.name for one in board.filters] == ["attack", "poison_rate"], "no filter for what other kinds lack"
    consensus, fct = whole(board).sifters
    assert (consensus.method, fct.method) == ("Consensus", "FCT")
    assert (consensus.rank, fct.rank) == (Estimate(value=1, low=1, high=1), Estimate(value=2, low=2, high=2))
    assert (fct.blocks, fct.of, fct.complete, fct.seconds, fct.peak_mb) == (2, 2, True, 20, 300)
    assert values(fct) == {"auroc": 0.625, "tpr_at_1": 0.3125, "tpr": 0.5, "fpr": 0.0625, "clean": 0.25}
    assert "clean" not in consensus.figures, "it never saw clean data"
    assert {attack: found["auroc"].value for attack, found in fct.attacks.items()} == {"BadNets": 0.75, "SIG": 0.5}
    assert whole(board).methods == whole(board).trainers == whole(board).scanners == []
    assert sum(note.startswith("Sifters:") for note in board.notes) == 1
    assert not any(note.startswith("Models that were trained securely") for note in board.notes)


def test_a_sifter_that_saw_clean_data_alone_is_listed_with_its_false_alarms() -> None:
    records = [sifted("FCT", None, fpr=fpr, seed=seed) for seed, fpr in enumerate((0.0, 0.125, 0.25))]
    (row,) = whole(board_of(records)).sifters
    assert (row.method, row.blocks, row.of, row.complete, row.rank) == ("FCT", 0, 0, False, None)
    assert values(row) == {"clean": 0.125}
    assert row.figures["clean"].low == 0
    assert row.figures["clean"].high is not None


def test_a_sifter_that_lacks_most_blocks_is_listed_and_not_ranked() -> None:
    records = [sifted(name, 0.5, attack=attack) for attack in ("BadNets", "SIG", "LF") for name in ("A", "B")]
    rows = whole(board_of([*records, sifted("C", 1.0)])).sifters
    assert [(row.method, row.complete, row.rank is not None) for row in rows] == [
        ("A", True, True),
        ("B", True, True),
        ("C", False, False),
    ]


def test_a_secure_training_is_rated_beside_the_undefended_victim_of_the_same_seed_and_attack() -> None:
    records = [
        trained(acc=0.9, seed=0),
        trained(acc=0.5, seed=1),
        trained(acc=0.1, attack="SIG"),
        trained(acc=0.2, precision="fp32"),
        trained(acc=0.3, training="given: other"),
        secured("DST", acc=0.8, asr=0.49, seed=0, mse_clean=0.01, mse_triggered=0.02),
    ]
    (row,) = whole(board_of(records)).trainers
    assert values(row) == {"acc": 0.8, "asr": 0.49, "ra": 0.8, "der": 0.7, "mse_clean": 0.01, "mse_triggered": 0.02}
    assert row.rank == Estimate(value=1)
    cells = cell_table(records)
    assert cells[cells["kind"] == "secure"]["der"].tolist() == pytest.approx([(0.99 - 0.49 - 0.1 + 1) / 2])


def test_a_secure_training_on_the_data_of_a_given_model_is_rated_beside_that_model() -> None:
    given = [trained(acc=acc, training=f"given: {name}") for name, acc in (("a", 0.9), ("b", 0.7))]
    records = [*given, trained(acc=0.1), secured("DST", acc=0.7, asr=0.99, training="given: b")]
    (row,) = whole(board_of(records)).trainers
    assert values(row)["der"] == 0.5


def test_without_an_undefended_victim_there_is_no_der_and_no_rank() -> None:
    records = [
        secured("DST", asr=0.25),
        secured("ABL", asr=0.5),
        trained(error="out of memory"),
        secured("X", asr=None),
    ]
    abl, dst = whole(board_of(records)).trainers
    assert [(row.method, row.complete, row.rank) for row in (abl, dst)] == [("ABL", True, None), ("DST", True, None)]
    assert "der" not in dst.figures
    assert values(dst)["asr"] == 0.25


def test_trainers_that_need_clean_samples_are_ranked_beside_those_that_do_not() -> None:
    records = [trained(), secured("DST", asr=0.5), secured("TrapAndReplace", asr=0.25, clean_size=50)]
    board = board_of(records)
    assert board.filters == []
    assert [(row.method, row.complete, row.rank and row.rank.value) for row in whole(board).trainers] == [
        ("TrapAndReplace", True, 1),
        ("DST", True, 2),
    ]
    sizes = [repaired("FT", 0.5, clean_size=size) for size in (50, 100)]
    board = board_of([*records, *sizes, secured("TrapAndReplace", asr=0.75, clean_size=100)])
    assert [one.name for one in board.filters] == ["clean_size"]
    names = ["TrapAndReplace, 50 clean samples", "DST", "TrapAndReplace, 100 clean samples"]
    for choice in ("", "50", "100"):
        assert [row.method for row in board.selections[choice,].trainers] == names
        assert [row.blocks for row in board.selections[choice,].methods] == [2 if choice == "" else 1]


def test_kinds_stand_apart_and_filters_narrow_each_of_them() -> None:
    records = [
        trained(attack="BadNets"),
        trained(attack="SIG"),
        *(repaired("FT", 0.75, attack=attack) for attack in ("BadNets", "SIG")),
        scanned("NC", backdoored=True, flagged=True, attack="BadNets"),
        secured("DST", attack="BadNets"),
        sifted("FCT", 0.75, attack="SIG"),
        sifted("FCT", None),
    ]
    board = board_of(records)
    everything = whole(board)
    names = [[row.method for row in rows] for rows in (everything.methods, everything.trainers, everything.sifters)]
    assert names == [["FT"], ["DST"], ["FCT"]]
    assert [one.method for one in everything.scanners] == ["NC"]
    assert [one.name for one in board.filters] == ["attack", "poison_rate"]
    of_sig = board.selections["SIG", ""]
    assert ([row.method for row in of_sig.sifters], of_sig.trainers, of_sig.scanners) == (["FCT"], [], [])
    assert "clean" not in of_sig.sifters[0].figures
    (clean,) = board.selections["None", ""].sifters
    assert values(clean) == {"clean": 0.0625}


def test_failed_cells_are_listed_and_not_averaged() -> None:
    records = [
        repaired("FT", 0.75),
        repaired("FT", 0.0, seed=1, error="out of memory"),
        record("purify", {}, method="SAU", clean_size=50, error="no such file"),
        scanned("NC", backdoored=True, flagged=True, error="stopped"),
    ]
    board = board_of(records)
    assert [one.method for one in whole(board).methods] == ["FT"]
    assert row(whole(board), "FT").der == Estimate(value=0.75)
    assert whole(board).scanners == []
    errors = [cell[list(board.columns).index("error")] for cell in board.cells]
    assert errors == ["", "out of memory", "no such file", "stopped"]
    facts = {fact.name: fact.value for fact in board.facts["Cells"]}
    assert (facts["Finished"], facts["Failed"]) == ("1", "3")
    assert (facts["Of kind purify"], facts["Of kind scan"]) == ("3", "1")


def test_repairs_of_clean_models_have_no_der_and_do_not_disturb_the_others() -> None:
    clean = record("purify", {"acc": 0.1, "seconds": 99.0}, method="FT", clean_size=50, attack="None", poison_rate=None)
    board = board_of([repaired("FT", 0.75), clean])
    found = row(whole(board), "FT")
    assert (found.der, found.acc, found.blocks) == (Estimate(value=0.75), Estimate(value=0.9), 1)
    assert board_of([clean]).selections == {}


def notes(*records: Record) -> list[str]:
    return list(board_of(list(records)).notes[len(NOTES) :])


def test_what_should_be_one_and_is_several_is_noted() -> None:
    here, there = repaired("FT", 0.5), repaired("FT", 0.5, seed=1, device="cuda (b)")
    assert notes(here, repaired("FT", 0.5, seed=1)) == []
    (note,) = notes(here, there)
    assert "cpu (a), cuda (b)" in note
    assert "times cannot be compared" in note
    (note,) = notes(here, repaired("FT", 0.5, seed=1, version="0.2.0"))
    assert "versions of unbackdoor: 0.1.0, 0.2.0" in note
    assert notes(here, repaired("FT", 0.5, seed=1, device="cuda (b)", error="failed")) == []
    commits = [repaired("FT", 0.5, seed=seed, commit=f"c{seed}") for seed in range(7)]
    (note,) = notes(*commits)
    assert note == "The cells come from several commits of unbackdoor: c0, c1, c2, c3, c4 and 2 more."
    (note,) = notes(here, replace(here, key="of other images"))
    assert "have the same labels: 1 (other images" in note
    again = trained()
    assert len(notes(again, replace(again, key="of other defaults"))) == 1


def test_curves_follow_an_axis_upwards_and_need_two_points() -> None:
    records = [
        repaired("FT", der, acc=0.5, asr=0.25, ra=0.125, clean_size=size, seed=seed)
        for size, seed, der in ((1000, 0, 0.75), (50, 0, 0.25), (50, 1, 0.5), (200, 0, 0.5))
    ]
    (curve,) = whole(board_of([*records, repaired("SAU", 0.5)])).curves
    assert (curve.kind, curve.axis, curve.method, curve.settings) == ("methods", "clean samples", "FT", 1)
    assert [x for x, _ in curve.points] == [50, 200, 1000]
    assert curve.points[0][1] == {"acc": 0.5, "asr": 0.25, "ra": 0.125, "der": 0.25}, "seed 1 was at one point only"
    apart = [repaired("FT", 0.5, attack=attack, poison_rate=rate) for attack, rate in (("A", 0.1), ("B", 0.05))]
    assert whole(board_of(apart)).curves == [], "nothing was tried at both rates"
    rates = [repaired("FT", 0.5, poison_rate=rate) for rate in (0.1, 0.01)]
    (curve,) = whole(board_of([*rates, repaired("FT", 0.5, poison_rate=None, attack="Other")])).curves
    assert (curve.axis, [x for x, _ in curve.points]) == ("poison rate", [0.01, 0.1])
    once = repaired("FT", 0.5, poison_rate=0.05, attack="Other")
    (curve,) = whole(board_of([*rates, once])).curves
    assert [x for x, _ in curve.points] == [0.01, 0.1], "what was tried at one rate only is in no curve, and ends none"


def ders(curve: Curve) -> list[tuple[float, float]]:
    return [(x, round(figures["der"], 9)) for x, figures in curve.points]


def test_the_curves_of_all_methods_are_over_what_all_of_them_have() -> None:
    """FT was tried on A and B, SAU on A alone."""
    records = [
        repaired(method, der + size / 1000, attack=attack, clean_size=size)
        for method, attack, der in (("FT", "A", 0.25), ("FT", "B", 0.75), ("SAU", "A", 0.5))
        for size in (50, 100)
    ]
    ft, sau = whole(board_of(records)).curves
    assert (ft.method, ders(ft)) == ("FT", [(50, 0.3), (100, 0.35)])
    assert (sau.method, ders(sau)) == ("SAU", [(50, 0.55), (100, 0.6)])
    more = [repaired("FT", 0.5, attack="C", clean_size=size) for size in (50, 100)]
    (alone,) = whole(board_of([*records, *more])).curves
    assert (alone.method, alone.settings) == ("FT", 3), "of SAU there is too little"
    assert len(ders(alone)) == 2


def test_settings_with_other_points_have_curves_of_their_own() -> None:
    records = [
        repaired("FT", size / 10_000, data=data, clean_size=size)
        for data, sizes in (("a", (100, 500)), ("b", (500, 2500)), ("c", (100, 500)))
        for size in sizes
    ]
    found = whole(board_of(records)).curves
    assert [(one.settings, ders(one)) for one in found] == [
        (2, [(100, 0.01), (500, 0.05)]),
        (1, [(500, 0.05), (2500, 0.25)]),
    ]


def test_secure_trainers_and_sifters_have_curves_over_the_poison_rate() -> None:
    rates = (0.01, 0.1)
    records = [
        *(trained(poison_rate=rate) for rate in rates),
        *(secured("DST", asr=rate, poison_rate=rate, clean_size=50) for rate in rates),
        *(sifted("FCT", 0.5 + rate, poison_rate=rate) for rate in rates),
    ]
    trainer, sifter = whole(board_of(records)).curves
    assert (trainer.kind, trainer.axis, trainer.method) == ("trainers", "poison rate", "DST")
    assert [(x, figures["asr"]) for x, figures in trainer.points] == [(0.01, 0.01), (0.1, 0.1)]
    assert set(trainer.points[0][1]) == {"acc", "asr", "ra", "der"}
    assert (sifter.kind, sifter.axis, sifter.method) == ("sifters", "poison rate", "FCT")
    assert [(x, figures["auroc"]) for x, figures in sifter.points] == [(0.01, 0.51), (0.1, 0.6)]


def test_a_figure_that_some_settings_lack_is_in_no_curve() -> None:
    """There is no victim of B, and so no DER."""
    rates = (0.01, 0.1)
    records = [trained(attack="A", poison_rate=rate) for rate in rates]
    records += [secured("DST", attack=attack, poison_rate=rate) for attack in "AB" for rate in rates]
    (curve,) = whole(board_of(records)).curves
    assert curve.settings == 2
    assert set(curve.points[0][1]) == {"acc", "asr", "ra"}


def test_of_scans_with_the_same_labels_the_newest_counts() -> None:
    newer, older = (scanned("NC", backdoored=True, flagged=flagged) for flagged in (False, True))
    board = board_of([newer, replace(older, key="older")])
    (scanner,) = whole(board).scanners
    assert (scanner.backdoored, scanner.flagged) == (1, 0)
    assert any("have the same labels: 1" in note for note in board.notes)


def test_scanners_have_memory_and_what_they_found_of_each_attack() -> None:
    records = [
        scanned("NC", backdoored=True, flagged=True, attack="BadNets"),
        scanned("NC", backdoored=True, flagged=False, attack="BadNets", seed=1),
        scanned("NC", backdoored=True, flagged=None, attack="SIG"),
        scanned("NC", backdoored=False, flagged=True),
    ]
    (scanner,) = whole(board_of(records)).scanners
    assert (scanner.peak_mb, scanner.peak_gpu_mb) == (300, None)
    assert scanner.attacks == {"BadNets": (1, 2), "SIG": (0, 1)}


def test_memory_of_the_gpu_is_told_of_every_kind() -> None:
    def on_gpu(one: Record) -> Record:
        return replace(one, metrics={**one.metrics, "peak_gpu_mb": 70.0})

    records = [repaired("FT", 0.5), secured("DST"), sifted("FCT", 0.5), scanned("NC", backdoored=True, flagged=True)]
    found = whole(board_of(list(map(on_gpu, records))))
    for rows in (found.methods, found.trainers, found.sifters, found.scanners):
        assert [row.peak_gpu_mb for row in rows] == [70]
    without = whole(board_of(records))
    assert [row.peak_gpu_mb for row in without.methods] == [None]


def test_a_secure_training_has_no_der_where_the_victims_differ_in_training() -> None:
    """A later grid with a shorter recipe must not change the DER of an earlier one without a word."""
    records = [trained(acc=0.9), secured("DST", acc=0.8, asr=0.49)]
    assert "der" in values(whole(board_of(records)).trainers[0])
    board = board_of([trained(acc=0.5, training="epochs=1"), *records])
    (row,) = whole(board).trainers
    assert "der" not in row.figures
    assert any("have no DER: 1. The store has models without a defence" in note for note in board.notes)
    assert not any("have no DER" in note for note in board_of(records).notes)


def test_the_der_of_a_secure_training_has_an_interval_where_the_shares_have() -> None:
    def with_ends(one: Record) -> Record:
        ends = {
            f"{name}_{end}": one.metrics[name] + distance
            for name in ("acc", "asr")
            for end, distance in (("low", -0.01), ("high", 0.01))
        }
        return replace(one, metrics={**one.metrics, **ends})

    victim, secure = with_ends(trained(acc=0.9)), with_ends(secured("DST", acc=0.8, asr=0.49))
    cells = cell_table([victim, secure])
    (row,) = cells[cells["kind"] == "secure"].to_dict("records")
    assert (row["der_low"], row["der"], row["der_high"]) == pytest.approx((0.69, 0.7, 0.71))
    cells = cell_table([trained(acc=0.9), secure])
    assert "der_low" not in cells


def test_the_choices_of_filters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.bench.leaderboard.MOST_SELECTIONS", 12)
    records = [
        repaired("FT", 0.5, data=data, attack=attack, clean_size=size)
        for data in "ab"
        for attack in "ABC"
        for size in (50, 100)
    ]
    board = board_of(records)
    assert [one.name for one in board.filters] == ["data", "attack"]
    assert len(board.selections) == 12
    assert any("too many choices for filters of Clean samples" in note for note in board.notes)
    assert whole(board).methods[0].blocks == 12


def test_a_store_without_cells_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"there are no cells to rank; run a grid first, with `unbackdoor bench"):
        leaderboard(cell_table([]), "A board")


@pytest.mark.parametrize("records", [[trained()], [trained(error="stopped")], [repaired("FT", 0.5, error="stopped")]])
def test_a_store_without_judgements_has_a_page_that_lists_what_there_is(records: list[Record]) -> None:
    board = board_of(records)
    assert board.selections == {}
    assert board.filters == []
    assert len(board.cells) == 1


MIXED = [
    trained(),
    trained(attack="None", poison_rate=None, seed=1),
    repaired("FT epochs=3", 0.1 + 0.2, clean_size=50),
    repaired("SAU", 0.75, clean_size=100, budget=0.5),
    scanned("NC", backdoored=False, flagged=None),
    scanned("NC", backdoored=True, flagged=True, first=True),
    secured("DST"),
    sifted("FCT", 0.75),
    sifted("FCT", None),
    record("purify", {}, method='quote " comma, and\nline', clean_size=50, error="it failed; äöü\nbadly"),
]


def test_a_parquet_file_gives_the_cells_back(tmp_path: Path) -> None:
    cells = cell_table(MIXED)
    write_cells(cells, tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "cells.parquet"), cells, check_dtype=False)


def test_a_csv_file_gives_the_cells_back(tmp_path: Path) -> None:
    cells = cell_table(MIXED)
    write_cells(cells, tmp_path)
    # "None" is the name of an attack, and pandas would read it as nothing.
    read = pd.read_csv(tmp_path / "cells.csv", keep_default_na=False, na_values=[""])
    assert list(read.columns) == list(cells.columns)
    for name in cells.columns:
        numbers = pd.api.types.is_numeric_dtype(cells[name])
        if numbers:
            np.testing.assert_array_equal(read[name].to_numpy(float), cells[name].to_numpy(float))
        else:
            assert read[name].fillna("").tolist() == cells[name].fillna("").tolist()
    assert list(read["attack"][:2]) == ["BadNets", "None"]


def result(method: str, **changes: Any) -> Row:
    return Row(
        **{
            "method": method,
            "blocks": 2,
            "der": Estimate(value=0.875, low=0.75, high=1.0),
            "rank": Estimate(value=1.5, low=1, high=2),
            "acc": Estimate(value=0.91234),
            "asr": Estimate(value=0.005, low=0.0, high=0.01),
            "ra": None,
            "seconds": 12.6,
            "peak_mb": 300.0,
            "attacks": {"BadNets": {"acc": Estimate(value=0.9), "der": Estimate(value=0.875)}},
            **changes,
        }
    )


def test_a_ranking_as_csv_has_fractions_and_all_ends(tmp_path: Path) -> None:
    unranked = result("B", rank=None, der=None, attacks={"SIG": {"acc": Estimate(value=0.5)}})
    write_ranking([result("A"), unranked], tmp_path)
    first, second = pd.read_csv(tmp_path / "ranking.csv").to_dict("records")
    expected = {
        "method": "A",
        "blocks": 2,
        "rank": 1.5,
        "rank_low": 1,
        "rank_high": 2,
        "der": 0.875,
        "der_low": 0.75,
        "der_high": 1,
        "acc": 0.91234,
        "asr": 0.005,
        "asr_low": 0,
        "asr_high": 0.01,
        "seconds": 12.6,
        "peak_mb": 300,
        "BadNets acc": 0.9,
        "BadNets der": 0.875,
    }
    assert {name: value for name, value in first.items() if not pd.isna(value)} == expected
    assert second["method"] == "B"
    assert second["SIG acc"] == 0.5
    assert all(pd.isna(second[name]) for name in ("rank", "rank_low", "der", "der_high", "BadNets acc"))


def latex(folder: Path, name: str = "ranking") -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a LaTeX file as they are written."""
    text = (folder / f"{name}.tex").read_text()
    found = re.fullmatch(
        r"\\begin{tabular}{lr*}\n\\toprule\n(.*) \\\\\n\\midrule\n((?:.* \\\\\n)*)\\bottomrule\n\\end{tabular}\n", text
    )
    assert found, text
    head, rows = found.groups()
    parts = [[part.strip() for part in re.split(r"(?<!\\)&", line[:-3])] for line in rows.splitlines()]
    return [part.strip() for part in head.split("&")], parts


def test_a_ranking_as_latex_has_percent(tmp_path: Path) -> None:
    write_ranking([result("A"), result("B", rank=None, der=None, seconds=None)], tmp_path)
    head, rows = latex(tmp_path)
    assert head == ["Method", "Rank", r"DER (\%)", r"ACC (\%)", r"ASR (\%)", r"RA (\%)", "Time (s)"]
    assert rows == [
        ["A", "1.5", "87.50", "91.23", "0.50", "--", "13"],
        ["B", "--", "--", "91.23", "0.50", "--", "--"],
    ]


NAMED = {"textbackslash{}": "\\", "textasciitilde{}": "~", "textasciicircum{}": "^"}
TOKEN = re.compile(r"\\(textbackslash{}|textasciitilde{}|textasciicircum{}|[&%$#_{}])|([^&%$#_{}~^\\])")


def as_latex_reads(text: str) -> str:
    """Return what LaTeX prints for text without commands of its own; anything else is an error."""
    printed, place = "", 0
    while place < len(text):
        found = TOKEN.match(text, place)
        assert found, f"LaTeX does not print {text[place:]!r} as it is"
        escaped, letter = found.groups()
        printed += letter or NAMED.get(escaped, escaped)
        place = found.end()
    return printed


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text("&%_#${}~^\\ab1 ", max_size=15).map(str.strip))
def test_latex_prints_every_name_as_it_is(tmp_path: Path, name: str) -> None:
    write_ranking([result(f"x{name}x")], tmp_path)
    ((written, *_),) = latex(tmp_path)[1]
    assert as_latex_reads(written) == f"x{name}x"


def test_the_characters_that_latex_reads_as_commands_are_escaped(tmp_path: Path) -> None:
    write_ranking([result(r"a & b % c _ d # e $ f { g } h ~ i ^ j \ k")], tmp_path)
    expected = r"a \& b \% c \_ d \# e \$ f \{ g \} h \textasciitilde{} i \textasciicircum{} j \textbackslash{} k"
    assert latex(tmp_path)[1][0][0] == expected


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path: Path) -> None:
    write_cells(cell_table([repaired("=HYPERLINK(1)", 0.5), trained(error="@SUM(1)", data="-x")]), tmp_path)
    read = pd.read_csv(tmp_path / "cells.csv")
    assert read["method"][0] == "'=HYPERLINK(1)"
    assert (read["error"][1], read["data"][1]) == ("'@SUM(1)", "'-x")
    write_ranking([result("A", attacks={"=1+1": {"der": Estimate(value=0.5)}})], tmp_path)
    assert not {name for name in pd.read_csv(tmp_path / "ranking.csv").columns if name.startswith("=")}


def test_each_kind_of_methods_has_tables_of_its_own(tmp_path: Path) -> None:
    shares = {"auroc": Estimate(value=0.75, low=0.5, high=1.0), "clean": Estimate(value=0.05)}
    place = {"blocks": 2, "of": 3, "complete": True, "rank": Estimate(value=1.0), "seconds": 12.6}
    write_sifters([Standing(method="F_CT", figures=shares, **place)], tmp_path)
    assert latex(tmp_path, "sift") == (
        [
            *("Method", "Rank", r"AUROC (\%)", r"TPR at FPR 1\% (\%)", r"TPR (\%)", r"FPR (\%)"),
            *(r"False alarms (\%)", "Time (s)"),
        ],
        [[r"F\_CT", "1", "75.00", "--", "--", "--", "5.00", "13"]],
    )
    (row,) = pd.read_csv(tmp_path / "sift.csv").to_dict("records")
    assert (row["method"], row["blocks"], row["complete"], row["auroc_low"], row["clean"]) == (
        "F_CT",
        2,
        True,
        0.5,
        0.05,
    )
    write_trainers([Standing(method="D", figures={"mse_clean": Estimate(value=0.015)}, **place)], tmp_path)
    assert pd.read_csv(tmp_path / "secure.csv")["mse_clean"].tolist() == [0.015]
    assert latex(tmp_path, "secure")[1] == [["D", "1", "--", "--", "--", "--", "13"]]
    counts = {"backdoored": 4, "flagged": 3, "targeted": 2, "target_first": 1, "clean": 5, "false_alarms": 0}
    write_scanners([ScannerRow(method="NC", inconclusive=1, seconds=None, **counts)], tmp_path)
    assert latex(tmp_path, "scan")[1] == [["NC", "3 of 4", "1 of 2", "0 of 5", "1", "--"]]
    assert pd.read_csv(tmp_path / "scan.csv")["flagged"].tolist() == [3]
    row = ScannerRow(method="NC", inconclusive=1, seconds=1.0, peak_mb=300.0, attacks={"SIG": (1, 2)}, **counts)
    write_scanners([row], tmp_path)
    (told,) = pd.read_csv(tmp_path / "scan.csv").to_dict("records")
    assert (told["peak_mb"], told["SIG flagged"], told["SIG backdoored"]) == (300, 1, 2)
    for write in (write_sifters, write_trainers, write_scanners):
        write([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_leaderboard_without_methods_leaves_none_of_an_earlier_one(tmp_path: Path) -> None:
    write_ranking([result("A")], tmp_path)
    write_ranking([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cells = cell_table(MIXED)
    with pytest.raises(OutputError, match=r"cells\.csv"):
        write_cells(cells, tmp_path / "file" / "folder")
    with pytest.raises(OutputError, match=r"ranking\.csv"):
        write_ranking([result("A")], tmp_path / "file" / "folder")


def test_what_is_ranked_can_be_exported(tmp_path: Path) -> None:
    rows = ranking(trials(cell_table([repaired("FT epochs=3", 0.5), repaired("SAU", 0.75)])))
    write_ranking(rows, tmp_path)
    assert [(one[0], one[1], one[2]) for one in latex(tmp_path)[1]] == [
        ("SAU", "1", "75.00"),
        ("FT epochs=3", "2", "50.00"),
    ]
