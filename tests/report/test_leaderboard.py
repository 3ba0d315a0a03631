"""The page of a leaderboard: what is in the file, and what a real browser makes of it when people click."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import HOSTILE, Watch
from tests.report.test_browser import CONTRASTS, is_drawn
from unbackdoor.errors import InputError, OutputError
from unbackdoor.report import Fact
from unbackdoor.report.leaderboard import (
    Curve,
    Estimate,
    Filter,
    Kind,
    Leaderboard,
    Row,
    ScannerRow,
    Selection,
    Standing,
    render_leaderboard,
    write_leaderboard,
)

Open = Callable[..., Any]

ATTACKS = ("BadNets", "Blended", "WaNet")
METHODS = ("ft", "fine-pruning", "i-bau", "npd")
RATES = ("0.01", "0.05", "0.1")
COLUMNS = ("data", "attack", "poison rate", "method", "seed", "ACC", "ASR", "DER", "seconds", "peak MB", "error")


def share(*numbers: int) -> float:
    """A fraction that looks like a measured one, always the same for the same numbers."""
    return random.Random(str(numbers)).random()


def figures(*numbers: int) -> dict[str, float]:
    asr = share(*numbers)
    return {"acc": 0.8 + 0.15 * share(*numbers, 1), "asr": asr, "ra": 0.9 * (1 - asr), "der": 1 - asr / 2}


def around(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.02, high=value + 0.013)


def estimates(*numbers: int) -> dict[str, Estimate]:
    """Those of `figures`, without intervals if the last number is odd."""
    plain = numbers[-1] % 2
    return {name: Estimate(value=value) if plain else around(value) for name, value in figures(*numbers).items()}


def selection(
    seed: int, methods: tuple[str, ...] = METHODS, attacks: tuple[str, ...] = ATTACKS, complete: bool = False
) -> Selection:
    rows = []
    for n, method in enumerate(methods):
        ranked = complete or n < len(methods) - 1
        known = attacks if ranked else attacks[:-1]
        by_attack = {attack: estimates(seed, n, attacks.index(attack)) for attack in known}
        means = {name: sum(found[name].value for found in by_attack.values()) / len(known) for name in figures(0)}
        rows.append(
            Row(
                method=method,
                blocks=6 * len(known),
                der=around(means["der"]),
                rank=Estimate(value=1 + (n * 3 + seed) % 7 / 2, low=1.0, high=4.25) if ranked else None,
                acc=around(means["acc"]),
                asr=around(means["asr"]),
                ra=Estimate(value=means["ra"]),
                seconds=12.4 + 100 * n,
                peak_mb=1234.5,
                attacks=by_attack,
            )
        )
    return Selection(
        blocks=6 * len(attacks),
        methods=rows,
        scanners=[
            ScannerRow(
                method="neural cleanse",
                backdoored=15,
                flagged=12,
                targeted=14,
                target_first=11,
                clean=5,
                false_alarms=1,
                inconclusive=2,
                seconds=88.6,
                peak_mb=321.4,
                peak_gpu_mb=45.0,
                attacks={attacks[0]: (5, 5), attacks[-1]: (2, 5)},
            ),
            ScannerRow(
                method="strip",
                backdoored=15,
                flagged=9,
                targeted=0,
                target_first=0,
                clean=0,
                false_alarms=0,
                inconclusive=0,
                seconds=None,
            ),
        ],
        curves=[
            Curve(
                kind="methods",
                axis="poison rate",
                method=method,
                settings=6,
                points=[(float(rate), figures(seed, n, m)) for m, rate in enumerate(RATES)],
            )
            for n, method in enumerate(methods)
        ]
        + [Curve(kind="methods", axis="clean samples", method="ft", settings=1, points=[(500.0, figures(1))])],
    )


TRAINERS = [
    Standing(
        method="d-st",
        blocks=6,
        of=6,
        complete=True,
        rank=Estimate(value=2.0, low=1.0, high=2.0),
        figures={"der": around(0.75), "acc": around(0.875), "asr": around(0.25), "ra": Estimate(value=0.5)},
        attacks={
            "BadNets": {"acc": around(0.9), "asr": around(0.125)},
            "WaNet": {"acc": around(0.85), "asr": around(0.375)},
        },
        seconds=100.4,
        peak_mb=500.0,
        peak_gpu_mb=70.0,
    ),
    Standing(
        method="trap-and-replace",
        blocks=6,
        of=6,
        complete=True,
        rank=Estimate(value=1.0, low=1.0, high=2.0),
        figures={
            "der": around(0.8125),
            "acc": around(0.75),
            "asr": around(0.0625),
            "ra": Estimate(value=0.5),
            "mse_clean": Estimate(value=0.00512, low=0.005, high=0.0052),
            "mse_triggered": Estimate(value=0.0125),
        },
        seconds=300.0,
        peak_mb=600.0,
    ),
]
SIFTERS = [
    Standing(
        method="consensus",
        blocks=6,
        of=6,
        complete=True,
        rank=Estimate(value=1.0),
        figures={"auroc": around(0.98), "tpr_at_1": around(0.5), "fpr": around(0.03125), "clean": Estimate(value=0.0)},
        attacks={"BadNets": {"auroc": around(0.99), "fpr": around(0.25)}, "WaNet": {"auroc": around(0.97)}},
        seconds=40.0,
    ),
    Standing(
        method="fct",
        blocks=6,
        of=6,
        complete=True,
        rank=Estimate(value=2.0),
        figures={"auroc": around(0.9), "tpr_at_1": around(0.75), "fpr": around(0.0625), "clean": Estimate(value=0.05)},
        attacks={"BadNets": {"auroc": around(0.8), "fpr": around(0.125)}, "WaNet": {"auroc": around(1.0)}},
        seconds=60.0,
    ),
    Standing(method="ac", blocks=1, of=6, complete=False, figures={"auroc": Estimate(value=0.99)}, seconds=5.0),
]


CURVES = [
    Curve(
        kind="trainers",
        axis="poison rate",
        method="d-st",
        settings=2,
        points=[(0.01, {"der": 0.7, "mse_clean": 0.004}), (0.1, {"der": 0.8, "mse_clean": 0.006})],
    ),
    *(
        Curve(
            kind="sifters",
            axis="poison rate",
            method="fct",
            settings=count,
            points=[(x, {"auroc": 0.5 + 5 * x, "fpr": x}) for x in at],
        )
        for count, at in ((3, (0.01, 0.05)), (1, (0.05, 0.1)))
    ),
]

SIFTED_ONLY = Selection(blocks=0, sifters=SIFTERS)


def cells(count: int) -> list[list[str | float | None]]:
    found: list[list[str | float | None]] = []
    for n in range(count):
        result = figures(n)
        failed = n % 40 == 39
        measured = [result["acc"], result["asr"], result["der"], 10.4 + n % 90, 900.4 + n % 77]
        found.append(
            [
                ("cifar10", "gtsrb")[n % 2],
                ATTACKS[n % 3],
                float(RATES[n // 3 % 3]),
                METHODS[n // 9 % 4],
                n // 36,
                *([None] * 5 if failed else measured),
                f"out of memory in cell {n}" if failed else None,
            ]
        )
    return found


@pytest.fixture(scope="module")
def board() -> Leaderboard:
    """A small board with a value of each kind."""
    filters = [
        Filter(name="data", title="Data set", values=["cifar10", "gtsrb"]),
        Filter(name="attack", title="Attack", values=ATTACKS),
        Filter(name="rate", title="Poison rate", values=RATES),
    ]
    selections = {
        ("", "", ""): selection(0),
        ("cifar10", "", ""): selection(1, complete=True),
        ("", "WaNet", ""): selection(2, attacks=("WaNet",), complete=True),
        ("", "", "0.05"): dataclasses.replace(selection(3), curves=[]),
        ("gtsrb", "WaNet", ""): Selection(blocks=0, trainers=TRAINERS, sifters=SIFTERS, curves=CURVES),
        ("gtsrb", "Blended", ""): Selection(blocks=0, sifters=SIFTERS[:1]),
        ("gtsrb", "", ""): Selection(blocks=0, scanners=selection(0).scanners[:1]),
    }
    return Leaderboard(
        title="Repairs of CIFAR-10 and GTSRB",
        filters=filters,
        attacks=ATTACKS,
        selections=selections,
        columns=COLUMNS,
        cells=cells(130),
        facts={
            "What was run": [Fact(name="Command", value="unbackdoor bench grid.yaml"), Fact(name="Seed", value="0")]
        },
        notes=["ASR is the share of triggered images that are taken for the target: `asr`.", "A lone ` stays."],
    )


@pytest.fixture(scope="module")
def html(board: Leaderboard) -> str:
    return render_leaderboard(board)


def data_of(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="board">(.*?)</script>', html, re.DOTALL)
    assert found
    assert not set(found[1]) & set("<>&\u2028\u2029")
    assert found[1].isascii()
    return json.loads(found[1])


def test_the_policy_allows_the_scripts_and_the_style_of_the_page_and_nothing_else(html: str) -> None:
    def sources(pattern: str) -> str:
        found = re.findall(pattern, html, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    scripts, style = sources(r"<script>(.*?)</script>"), sources(r"<style>(.*?)</style>")
    assert policy[1] == (
        f"default-src 'none'; img-src data:; script-src {scripts}; style-src {style}; "
        "base-uri 'none'; form-action 'none'"
    )
    assert scripts.count("sha256") == 3
    assert style.count("sha256") == 1


def test_the_page_refers_to_nothing_outside(html: str) -> None:
    shell = re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="([^"]*)"', shell) == ["data:,"]
    assert not re.search(r"\son\w+=|\sstyle=", shell)
    assert "@import" not in html
    assert "url(" not in "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))


def hostile_board(board: Leaderboard, text: str) -> Leaderboard:
    """A board with `text` wherever strangers' text can stand."""
    row = dataclasses.replace(board.selections[("", "", "")].methods[0], method=text, attacks={text: estimates(1)})
    scanner = dataclasses.replace(board.selections[("", "", "")].scanners[0], method=text, attacks={text: (1, 2)})
    trainer, sifter = (
        dataclasses.replace(found[0], method=text, attacks={text: {"asr": around(0.5), "auroc": around(0.5)}})
        for found in (TRAINERS, SIFTERS)
    )
    kinds: tuple[Kind, ...] = ("methods", "trainers", "sifters")
    curves = [
        Curve(
            kind=kind,
            axis="poison rate",
            method=text,
            settings=1,
            points=[(x, {**figures(1), "auroc": x}) for x in (0.1, 0.2)],
        )
        for kind in kinds
    ]
    return Leaderboard(
        title=text,
        filters=[Filter(name=text, title=text, values=[text])],
        attacks=[text],
        selections={
            ("",): Selection(
                blocks=1, methods=[row], scanners=[scanner], curves=curves, trainers=[trainer], sifters=[sifter]
            )
        },
        columns=[text, f"{text} ACC"],
        cells=[[text, text], [text, 0.5]],
        facts={text: [Fact(name=text, value=text)]},
        notes=[text],
    )


def test_text_of_strangers_is_only_in_the_data_and_clean(board: Leaderboard) -> None:
    evil = f"</script><!--evil&\u2028 {HOSTILE} /home/anna/secret/x/y.pt"
    html = render_leaderboard(hostile_board(board, evil))
    data = data_of(html)
    assert data["title"] == data["methods"][0] == data["cells"][0][1]
    assert data["title"] == "</script><!--evil&  <script>document.title='owned'</script>red x/y.pt"
    assert "anna" not in html
    assert html.count("evil") == html.partition('id="board">')[2].partition("</script>")[0].count("evil") > 10


def test_the_data_are_lists_with_methods_as_numbers(board: Leaderboard, html: str) -> None:
    data = data_of(html)
    assert data["methods"] == [
        *METHODS,
        "neural cleanse",
        "strip",
        "d-st",
        "trap-and-replace",
        "consensus",
        "fct",
        "ac",
    ]
    assert [axis[3] for axis in data["filters"]] == [0, 1, 2]
    assert dict(data["columns"])["ASR"] == "share"
    assert [kind for _, kind in data["columns"]] == ["plain"] * 5 + ["share"] * 3 + ["whole"] * 2 + ["plain"]
    assert set(data["selections"]) == {"0,0,0", "1,0,0", "0,3,0", "0,0,2", "2,0,0", "2,3,0", "2,2,0"}
    blocks, rows, scanners, curves, trainers, sifters = data["selections"]["0,0,0"]
    assert trainers == sifters == []
    lines, trainers, sifters = data["selections"]["2,3,0"][3:]
    assert lines[0] == [
        *("trainers", "poison rate", 6, 2),
        [[0.01, 0.7, None, None, None, 0.004, None], [0.1, 0.8, None, None, None, 0.006, None]],
    ]
    assert lines[1][:4] == ["sifters", "poison rate", 9, 3]
    assert lines[1][4][0] == [0.01, 0.55, None, None, 0.01, None]
    assert [row[:5] for row in trainers] == [[6, 6, 6, True, [2, 1, 2]], [7, 6, 6, True, [1, 1, 2]]]
    assert trainers[1][5:7] == [300, 600]
    assert trainers[1][7][4:] == [[0.00512, 0.005, 0.0052], 0.0125]
    assert trainers[0][7][4:] == [None, None]
    assert [row[9] for row in trainers] == [70, None]
    assert sifters[2] == [10, 1, 6, False, None, 5, None, [0.99, None, None, None, None], [None, None, None], None]
    assert sifters[0][8][2] == [pytest.approx([0.97, 0.95, 0.983]), None, None, None, None]
    row = board.selections[("", "", "")].methods[0]
    assert blocks == 18
    assert rows[0][:2] == [0, 18]
    for place, estimate in ((2, row.der), (4, row.acc), (5, row.asr)):
        assert estimate
        assert rows[0][place] == pytest.approx([estimate.value, estimate.low, estimate.high], abs=1e-6)
    assert rows[0][3] == [1, 1, 4.25]
    assert row.ra
    assert rows[0][6] == pytest.approx(row.ra.value, abs=1e-6)
    order = ("der", "asr", "acc", "ra")
    for found, name in zip(rows[0][10][0], order, strict=True):
        estimate = row.attacks["BadNets"][name]
        assert found == pytest.approx([estimate.value, estimate.low, estimate.high], abs=1e-6)
    assert rows[0][10][1] == pytest.approx([row.attacks["Blended"][name].value for name in order], abs=1e-6)
    assert rows[3][10][2] is None
    assert scanners[0] == [4, 15, 12, 14, 11, 5, 1, 2, 88.6, 321.4, [[5, 5], None, [2, 5]], 45]
    assert curves[0][:4] == ["methods", "poison rate", 0, 6]
    assert curves[0][4][1] == pytest.approx([0.05, *(figures(0, 0, 1)[name] for name in order)], abs=1e-6)


def test_the_mean_over_attacks_is_left_out_for_a_method_that_lacks_one(board: Leaderboard, html: str) -> None:
    rows = data_of(html)["selections"]["0,0,0"][1]
    first = board.selections[("", "", "")].methods[0]
    assert rows[0][9][1] == pytest.approx(sum(found["asr"].value for found in first.attacks.values()) / 3, abs=1e-6)
    assert rows[3][9] == [None] * 4


def test_what_is_no_number_becomes_nothing(board: Leaderboard) -> None:
    rows = [dataclasses.replace(row, seconds=float("nan")) for row in selection(0).methods]
    broken = dataclasses.replace(board, selections={("", "", ""): Selection(blocks=1, methods=rows)})
    assert data_of(render_leaderboard(broken))["selections"]["0,0,0"][1][0][7] is None


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (None, None),
        (Estimate(value=0.5), 0.5),
        (Estimate(value=0.5, low=0.25, high=0.75), [0.5, 0.25, 0.75]),
        (Estimate(value=0.5, low=0.25), 0.5),
        (Estimate(value=0.5, low=0.25, high=float("nan")), 0.5),
        (Estimate(value=float("nan"), low=0.25, high=0.75), None),
    ],
)
def test_an_estimate_without_a_whole_interval_is_its_value_alone(
    board: Leaderboard, estimate: Estimate | None, expected: float | list[float] | None
) -> None:
    row = dataclasses.replace(selection(0).methods[0], acc=estimate)
    changed = dataclasses.replace(board, selections={("", "", ""): Selection(blocks=1, methods=[row])})
    assert data_of(render_leaderboard(changed))["selections"]["0,0,0"][1][0][4] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selections": {("cifar10", ""): Selection(blocks=0)}}, "each of the filters"),
        ({"selections": {("mnist", "", ""): Selection(blocks=0)}}, "each of the filters"),
        ({"attacks": ["BadNets"]}, "lack \\['Blended', 'WaNet'\\]"),
        ({"attacks": ["BadNets", "Blended"], "selections": {("", "", ""): SIFTED_ONLY}}, "lack \\['WaNet'\\]"),
        ({"cells": [["cifar10"]]}, "one value for each of the columns"),
        ({"filters": [Filter(name="budget", title="Budget", values=[])], "selections": {}}, "'budget' needs a column"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(board: Leaderboard, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        render_leaderboard(dataclasses.replace(board, **change))


def test_the_written_file_is_the_rendered_page(tmp_path: Path, board: Leaderboard, html: str) -> None:
    write_leaderboard(tmp_path / "new" / "board.html", board)
    assert (tmp_path / "new" / "board.html").read_bytes() == html.encode()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_leaderboard(tmp_path / "file" / "board.html", board)


# The texts of a column, without the intervals.
COLUMN = """(table, title) => [...table.tBodies[0].rows].map(row => {
    const place = [...table.tHead.rows[0].cells].findIndex(head => head.textContent === title);
    return row.cells[place].firstChild.textContent.trim();
})"""

# The middle of each mark of a chart, in the order of its methods.
MARKS = """chart => [...chart.querySelectorAll('.mark-symbol path')].map(mark => {
    const box = mark.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
})"""

# The box of a part of a cell.
BOX = """(cell, part) => {
    const range = document.createRange();
    range.selectNodeContents(cell.childNodes[part]);
    return range.getBoundingClientRect().toJSON();
}"""

# The next chart to be drawn fails, and only that one.
BREAK_NEXT_CHART = """() => {
    const whole = window.specification;
    window.specification = () => {
        window.specification = whole;
        throw new Error('broken for the test');
    };
}"""


def percent(value: float) -> str:
    """The share as the page shows it, which has it with six decimals."""
    return f"{100 * round(value, 6):.2f}"


def interval(estimate: Estimate | None) -> str:
    """The interval as the page shows it."""
    assert estimate
    assert estimate.low is not None
    assert estimate.high is not None
    return f"[{percent(estimate.low)}, {percent(estimate.high)}]"


def column(page: Any, table: str, title: str) -> list[str]:
    found: list[str] = page.locator(f"#{table}").evaluate(COLUMN, title)
    return found


def press(page: Any, table: str, title: str) -> None:
    page.locator(f"#{table} thead").get_by_role("button", name=title, exact=True).click()


def settled(page: Any) -> Any:
    """The page, once its charts are drawn."""
    page.evaluate("drawing")
    return page


def reopened(page: Any, view: str) -> Any:
    """The page, loaded anew at its address with `view`."""
    address = page.url.partition("#")[0]
    # From the page itself, only the hash would change, and nothing would be loaded.
    page.goto("about:blank")
    page.goto(address + view)
    return settled(page)


def sorted_head(page: Any, table: str) -> tuple[str, str]:
    head = page.locator(f"#{table} thead [aria-sort]")
    assert head.count() == 1
    return head.inner_text(), head.get_attribute("aria-sort")


@pytest.mark.browser
def test_methods_stand_by_rank_and_those_without_one_below(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    assert page.title() == "Repairs of CIFAR-10 and GTSRB · unbackdoor"
    assert column(page, "ranking", "Method") == ["ft", "fine-pruning", "i-bau", "npd"]
    assert column(page, "ranking", "Rank") == ["1.00", "2.50", "4.00", "–"]
    assert page.locator("#ranking tbody tr").nth(1).locator(".ends").first.inner_text() == "[1.00, 4.25]"
    assert column(page, "ranking", "Time (s)") == ["12", "112", "212", "312"]
    assert column(page, "ranking", "Memory (MB)") == ["1235"] * 4
    assert column(page, "ranking", "Blocks") == ["18 of 18"] * 3 + ["12 of 18"]
    assert "incomplete" in page.locator("#ranking tbody tr").last.inner_text()
    assert page.locator("#incomplete").is_visible()
    assert page.locator("#status").inner_text() == "methods: 4, blocks: 18, scanners: 2"
    assert page.locator("#notes code").inner_text() == "asr"
    assert page.locator("#notes li").last.inner_text() == "A lone ` stays."
    assert page.locator("#facts code").inner_text() == "unbackdoor bench grid.yaml"
    press(page, "ranking", "Method")
    assert column(page, "ranking", "Method") == ["fine-pruning", "ft", "i-bau", "npd"]
    press(page, "ranking", "Method")
    assert column(page, "ranking", "Method") == ["i-bau", "ft", "fine-pruning", "npd"]


@pytest.mark.browser
def test_heads_sort_best_first_and_keep_the_focus(open_page: Open, html: str, board: Leaderboard) -> None:
    page = settled(open_page(html))
    assert sorted_head(page, "ranking") == ("Rank", "ascending")
    ranked = board.selections[("", "", "")].methods[:3]
    for title, name, best_first in (("ASR (%)", "asr", False), ("ACC (%)", "acc", True)):
        press(page, "ranking", title)
        shares = sorted((getattr(row, name).value for row in ranked), reverse=best_first)
        assert column(page, "ranking", title)[:3] == [f"{100 * value:.2f}" for value in shares]
        assert sorted_head(page, "ranking") == (title, "descending" if best_first else "ascending")
    page.keyboard.press("Enter")
    assert sorted_head(page, "ranking") == ("ACC (%)", "ascending")
    assert column(page, "ranking", "ACC (%)")[:3] == [f"{100 * value:.2f}" for value in shares[::-1]]
    assert page.evaluate("document.activeElement.textContent") == "ACC (%)"
    assert page.locator("#cells thead [aria-sort]").count() == 0


@pytest.mark.browser
def test_an_interval_stands_under_its_figure_where_there_is_one(open_page: Open, html: str, board: Leaderboard) -> None:
    page = settled(open_page(html))
    row = board.selections[("", "", "")].methods[0]
    cells = page.locator("#ranking tbody tr").first.locator("td")
    expected = ["[1.00, 4.25]", *(interval(found) for found in (row.der, row.acc, row.asr))]
    assert [cells.nth(n).locator(".ends").inner_text() for n in range(4)] == expected
    assert row.ra
    assert cells.nth(4).inner_text() == percent(row.ra.value)
    assert cells.nth(4).locator(".ends").count() == 0
    cells = page.locator("#attacks tbody tr").first.locator("td")
    for n, attack in ((1, "BadNets"), (3, "WaNet")):
        assert cells.nth(n).locator(".ends").inner_text() == interval(row.attacks[attack]["der"])
    assert cells.nth(0).inner_text() == percent(sum(found["der"].value for found in row.attacks.values()) / 3)
    assert cells.nth(2).inner_text() == percent(row.attacks["Blended"]["der"].value)
    figure, ends = (cells.nth(1).evaluate(BOX, part) for part in (0, 2))
    assert ends["top"] >= figure["bottom"] - 1
    assert ends["height"] < figure["height"]


@pytest.mark.browser
def test_filters_act_on_everything(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    page.get_by_label("Data set", exact=True).select_option("cifar10")
    settled(page)
    assert column(page, "ranking", "Method") == ["i-bau", "ft", "npd", "fine-pruning"]
    assert page.locator("#incomplete").is_hidden()
    assert set(column(page, "cells", "data")) == {"cifar10"}
    assert page.locator("#range").inner_text() == "1 to 50 of 65"
    page.get_by_label("Poison rate", exact=True).select_option("0.05")
    assert page.locator("#status").inner_text().startswith("There are no cells for this choice.")
    for part in ("ranking", "attacks", "scatter", "rates", "samples", "scanners"):
        assert page.locator(f"#{part}-section").is_hidden(), part
    page.get_by_label("Data set", exact=True).select_option("all")
    assert page.locator("#ranking-section").is_visible()
    assert page.locator("#rates-section").is_hidden()
    assert set(column(page, "cells", "poison rate")) == {"0.05"}
    page.get_by_label("Poison rate", exact=True).select_option("all")
    page.get_by_label("Data set", exact=True).select_option("gtsrb")
    assert page.locator("#scanners-section").is_visible()
    assert page.locator("#ranking-section").is_hidden()
    settled(page)


@pytest.mark.browser
def test_cells_without_a_value_are_chosen_as_none(open_page: Open, board: Leaderboard) -> None:
    rows = [cell if n else [cell[0], None, *cell[2:]] for n, cell in enumerate(board.cells)]
    attacks = dataclasses.replace(board.filters[1], values=[*ATTACKS, "none"])
    filters = [board.filters[0], attacks, board.filters[2]]
    page = settled(open_page(render_leaderboard(dataclasses.replace(board, cells=rows, filters=filters))))
    page.get_by_label("Attack", exact=True).select_option("none")
    assert page.locator("#range").inner_text() == "1 to 1 of 1"
    settled(page)


@pytest.mark.browser
def test_the_table_by_attack_shows_the_chosen_figure(open_page: Open, html: str, board: Leaderboard) -> None:
    page = settled(open_page(html))
    heads = page.locator("#attacks thead button")
    assert heads.all_inner_texts() == ["Method", "Mean", *ATTACKS]
    page.locator("#attacks-section").get_by_label("Figure", exact=True).select_option("ASR")
    rows = board.selections[("", "", "")].methods
    assert column(page, "attacks", "WaNet")[:3] == [percent(row.attacks["WaNet"]["asr"].value) for row in rows[:3]]
    assert column(page, "attacks", "WaNet")[3] == column(page, "attacks", "Mean")[3] == "–"
    press(page, "attacks", "WaNet")
    assert sorted_head(page, "attacks") == ("WaNet", "ascending")
    page.get_by_label("Attack", exact=True).select_option("WaNet")
    assert heads.all_inner_texts() == ["Method", "Mean", "WaNet"]
    assert sorted_head(page, "attacks") == ("WaNet", "ascending")
    settled(page)


@pytest.mark.browser
def test_the_scatter_plot_has_a_point_for_each_method_and_attack(
    open_page: Open, html: str, board: Leaderboard
) -> None:
    page = settled(open_page(html))
    chart = page.locator("#scatter-chart")
    by_attack = [found for row in board.selections[("", "", "")].methods for found in row.attacks.values()]
    points = [{name: estimate.value for name, estimate in found.items()} for found in by_attack]
    marks = chart.evaluate(MARKS)
    assert len(marks) == len(points) == 11
    low, high = (min(range(11), key=lambda n: sign * points[n]["asr"]) for sign in (1, -1))
    scale = (marks[high][0] - marks[low][0]) / (points[high]["asr"] - points[low]["asr"])
    expected = [marks[low][0] + scale * (point["asr"] - points[low]["asr"]) for point in points]
    assert [x for x, _ in marks] == pytest.approx(expected, abs=1)
    assert scale > 300
    order = sorted(range(11), key=lambda n: points[n]["acc"])
    heights = [marks[n][1] for n in order]
    assert heights == sorted(heights, reverse=True)
    assert is_drawn(page, chart)
    assert chart.get_attribute("role") == "img"
    assert chart.get_attribute("aria-label").endswith(" 11 points. The table by attack has its figures.")
    assert page.locator("#scatter-legend li").all_inner_texts() == ["ft", "fine-pruning", "i-bau", "npd"]
    chart.scroll_into_view_if_needed()
    page.mouse.move(*chart.evaluate(MARKS)[0])
    lines = page.locator(".tip").inner_text().splitlines()
    assert lines == ["ft", "BadNets", f"ASR {100 * points[0]['asr']:.2f} %, ACC {100 * points[0]['acc']:.2f} %"]
    page.mouse.move(2, 2)
    assert page.locator(".tip").is_hidden()


@pytest.mark.browser
def test_curves_are_drawn_if_they_have_two_points(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    assert page.locator("#samples-section").is_hidden()
    chart = page.locator("#rates-chart")
    assert len(chart.evaluate(MARKS)) == 12
    assert chart.locator(".mark-line path").count() == 4
    assert {"1%", "5%", "10%"} <= set(chart.locator("text").all_text_contents())
    label = "Line chart of DER over poison rate, 4 methods. The table below has its figures."
    assert chart.get_attribute("aria-label") == label
    before = chart.evaluate(MARKS)
    page.locator("#rates-section").get_by_label("Figure", exact=True).select_option("ASR")
    settled(page)
    assert chart.evaluate(MARKS) != before
    assert "ASR over poison rate" in chart.get_attribute("aria-label")
    page.locator("#rates-summary").click()
    assert column(page, "rates", "0.05")[0] == f"{100 * figures(0, 0, 1)['asr']:.2f}"


@pytest.mark.browser
def test_secure_trainers_and_sifters_have_charts_of_their_own(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    for part in ("trainers-scatter", "trainers-rates", "sifters-rates"):
        assert page.locator(f"#{part}-section").is_hidden(), part
    page.get_by_label("Data set", exact=True).select_option("gtsrb")
    page.get_by_label("Attack", exact=True).select_option("WaNet")
    settled(page)
    (left, top), (right, bottom) = page.locator("#trainers-scatter-chart").evaluate(MARKS)
    assert right - left > 100, "of BadNets and WaNet, by ASR"
    assert bottom > top, "the less accurate one is lower"
    assert page.locator("#trainers-scatter-legend li").all_inner_texts() == ["d-st"]
    chart = page.locator("#trainers-rates-chart")
    assert chart.get_attribute("aria-label").startswith("Line chart of DER over poison rate, 1 methods.")
    page.locator("#trainers-rates-section").get_by_label("Figure", exact=True).select_option("MSE, clean")
    settled(page)
    assert chart.get_attribute("aria-label").startswith("Line chart of MSE, clean over poison rate")
    assert is_drawn(page, chart)
    page.locator("#trainers-rates-summary").click()
    assert column(page, "trainers-rates", "0.1") == ["0.00600"]
    assert column(page, "trainers-rates", "Settings") == ["2"]
    chart = page.locator("#sifters-rates-chart")
    assert chart.locator(".mark-line path").count() == 2, "settings with other points have a line of their own"
    assert len(chart.evaluate(MARKS)) == 4
    page.locator("#sifters-rates-summary").click()
    assert column(page, "sifters-rates", "Method") == ["fct", "fct"]
    assert column(page, "sifters-rates", "0.01") == ["55.00", "–"]
    assert column(page, "sifters-rates", "0.1") == ["–", "100.00"]


@pytest.mark.browser
def test_memory_of_the_gpu_has_a_column_where_one_was_used(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    assert "GPU memory (MB)" not in page.locator("#ranking thead button").all_inner_texts()
    assert column(page, "scanners", "GPU memory (MB)") == ["45", "–"]
    page.get_by_label("Data set", exact=True).select_option("gtsrb")
    page.get_by_label("Attack", exact=True).select_option("WaNet")
    assert column(settled(page), "trainers", "GPU memory (MB)") == ["–", "70"]


@pytest.mark.browser
def test_the_caption_of_each_chart_says_which_table_has_its_figures(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    for part, table in (("scatter", "the table by attack"), ("rates", "the table below")):
        caption = page.locator(f"#{part}-section figcaption")
        assert caption.is_visible()
        assert table in caption.inner_text()


@pytest.mark.browser
def test_a_chart_that_fails_says_so_and_stops_no_other(open_page: Open, html: str, watch: Watch) -> None:
    page = settled(open_page(html))
    scatter, rates = page.locator("#scatter-chart"), page.locator("#rates-chart")
    before = rates.locator(".mark-symbol").first.inner_html()
    page.evaluate(BREAK_NEXT_CHART)
    with page.expect_console_message() as complaint:
        page.get_by_label("Data set", exact=True).select_option("cifar10")
    assert "broken for the test" in complaint.value.text
    settled(page)
    text = "This chart could not be drawn. The table by attack has its figures."
    assert scatter.inner_text() == scatter.get_attribute("aria-label") == text
    assert page.locator("#scatter-legend li").count() == 0
    assert rates.locator(".mark-symbol").first.inner_html() != before
    page.get_by_label("Data set", exact=True).select_option("all")
    settled(page)
    assert len(scatter.evaluate(MARKS)) == 11
    assert text not in scatter.inner_text()
    assert "11 points" in scatter.get_attribute("aria-label")
    assert page.locator("#scatter-legend li").count() == 4
    assert rates.locator(".mark-symbol").first.inner_html() == before
    assert len(watch.complaints) == 1
    watch.complaints.clear()


@pytest.mark.browser
def test_scanners_have_counts_and_shares(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    cells = page.locator("#scanners tbody tr").nth(0).locator("th, td").all_inner_texts()
    counts = ["12 of 15 (80.00 %)", "11 of 14 (78.57 %)", "1 of 5 (20.00 %)", "2"]
    expected = ["neural cleanse", *counts, "89", "321", "45"]
    assert cells == expected
    cells = page.locator("#scanners tbody tr").nth(1).locator("th, td").all_inner_texts()
    assert cells == ["strip", "9 of 15 (60.00 %)", "–", "–", "0", "–", "–", "–"]
    assert page.locator("#scanners-attacks thead button").all_inner_texts() == ["Method", "BadNets", "WaNet"]
    assert column(page, "scanners-attacks", "WaNet") == ["2 of 5 (40.00 %)", "–"]
    press(page, "scanners-attacks", "BadNets")
    assert sorted_head(page, "scanners-attacks") == ("BadNets", "descending")


def chosen(page: Any, data: str, attack: str) -> Any:
    page.get_by_label("Data set", exact=True).select_option(data)
    page.get_by_label("Attack", exact=True).select_option(attack)
    return settled(page)


@pytest.mark.browser
def test_each_kind_of_methods_has_a_table_that_sorts(open_page: Open, html: str) -> None:
    page = chosen(settled(open_page(html)), "gtsrb", "WaNet")
    for part in ("ranking", "attacks", "scatter", "rates", "scanners"):
        assert page.locator(f"#{part}-section").is_hidden(), part
    assert page.locator("#status").inner_text() == "secure trainers: 2, sifters: 3"
    assert column(page, "trainers", "Method") == ["trap-and-replace", "d-st"], "by rank"
    assert column(page, "trainers", "MSE, clean") == ["0.00512", "–"]
    assert page.locator("#trainers tbody tr").first.locator(".ends").first.inner_text() == "[1.00, 2.00]"
    assert page.locator("#trainers-incomplete").is_hidden()
    press(page, "trainers", "ACC (%)")
    assert column(page, "trainers", "ACC (%)") == ["87.50", "75.00"], "the best comes first"
    assert sorted_head(page, "trainers") == ("ACC (%)", "descending")
    assert column(page, "sifters", "Method") == ["consensus", "fct", "ac"]
    assert column(page, "sifters", "AUROC (%)") == ["98.00", "90.00", "99.00"]
    assert column(page, "sifters", "False alarms (%)") == ["0.00", "5.00", "–"]
    assert "incomplete" in page.locator("#sifters tbody tr").last.inner_text()
    assert page.locator("#sifters-incomplete").is_visible()
    heads = page.locator("#sifters thead button").all_inner_texts()
    assert "TPR (%)" not in heads, "none of them has it"
    press(page, "sifters", "TPR at FPR 1 % (%)")
    assert column(page, "sifters", "Method") == ["fct", "consensus", "ac"]
    press(page, "sifters", "AUROC (%)")
    assert column(page, "sifters", "Method") == ["consensus", "fct", "ac"], "what cannot be compared stays below"
    assert page.locator("#sifters-attacks thead button").all_inner_texts() == ["Method", "BadNets", "WaNet"]
    assert column(page, "sifters-attacks", "BadNets") == ["99.00", "80.00", "–"]
    press(page, "sifters-attacks", "WaNet")
    assert column(page, "sifters-attacks", "Method") == ["fct", "consensus", "ac"]
    figure = page.locator("#sifters-section").get_by_label("Figure", exact=True)
    assert "False alarms (%)" not in figure.locator("option").all_inner_texts()
    figure.select_option("FPR (%)")
    assert column(page, "sifters-attacks", "BadNets") == ["25.00", "12.50", "–"]
    press(page, "sifters-attacks", "BadNets")
    assert column(page, "sifters-attacks", "BadNets") == ["12.50", "25.00", "–"], "here the low end is the best"
    view = settled(page).evaluate("location.hash")
    tables = ("trainers", "sifters", "sifters-attacks")
    shown = {table: page.locator(f"#{table}").inner_text() for table in tables}
    reopened(page, view)
    assert {table: page.locator(f"#{table}").inner_text() for table in shown} == shown


@pytest.mark.browser
def test_kinds_that_there_are_not_have_no_table(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    assert page.locator("#trainers-section").is_hidden()
    assert page.locator("#sifters-section").is_hidden()
    chosen(page, "gtsrb", "Blended")
    assert page.locator("#trainers-section").is_hidden()
    assert column(page, "sifters", "Method") == ["consensus"]
    chosen(page, "all", "all")
    assert page.locator("#sifters-section").is_hidden()
    assert page.locator("#ranking-section").is_visible()


@pytest.mark.browser
def test_all_cells_can_be_paged_searched_and_sorted(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    assert column(page, "cells", "seed")[:2] == ["0", "0"]
    assert column(page, "cells", "ACC (%)")[0] == f"{100 * figures(0)['acc']:.2f}"
    page.get_by_role("button", name="Next").focus()
    ranges = []
    for _ in range(3):
        page.keyboard.press("Enter")
        ranges.append(page.locator("#range").inner_text())
    assert ranges == ["51 to 100 of 130", "101 to 130 of 130", "101 to 130 of 130"]
    assert page.get_by_role("button", name="Next").get_attribute("aria-disabled") == "true"
    assert page.evaluate("location.hash") == "#page=3"
    page.get_by_role("button", name="Previous").click()
    assert page.locator("#range").inner_text() == "51 to 100 of 130"
    assert page.evaluate("location.hash") == "#page=2"
    page.get_by_label("Search").fill("Memory  OUT")
    assert "page" not in page.evaluate("location.hash")
    assert column(page, "cells", "error") == [f"out of memory in cell {n}" for n in (39, 79, 119)]
    assert column(page, "cells", "ACC (%)") == ["–"] * 3
    page.get_by_label("Search").fill("nothing like this")
    assert page.locator("#range").inner_text() == "No cells"
    page.get_by_label("Search").fill("")
    for _ in range(2):
        press(page, "cells", "ASR (%)")
    shares = sorted((figures(n)["asr"] for n in range(130) if n % 40 != 39), reverse=True)
    assert column(page, "cells", "ASR (%)") == [f"{100 * value:.2f}" for value in shares[:50]]


@pytest.mark.browser
def test_the_address_holds_the_view(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    assert page.evaluate("location.hash") in {"", "#"}
    page.get_by_label("Data set", exact=True).select_option("cifar10")
    page.locator("#attacks-section").get_by_label("Figure", exact=True).select_option("RA")
    press(page, "ranking", "ASR (%)")
    page.get_by_label("Search").fill("Blended & 0.05")
    view = page.evaluate("location.hash")
    other = settled(open_page(html))
    other.evaluate("hash => { location.hash = hash; }", view)
    other.wait_for_function("document.getElementById('search').value")
    assert other.get_by_label("Data set", exact=True).input_value() == "cifar10"
    assert other.locator("#attacks-section").get_by_label("Figure", exact=True).input_value() == "RA"
    assert other.get_by_label("Search").input_value() == "Blended & 0.05"
    assert sorted_head(other, "ranking") == ("ASR (%)", "ascending")
    for table in ("ranking", "attacks", "cells"):
        assert other.locator(f"#{table}").inner_text() == page.locator(f"#{table}").inner_text()
    other.evaluate("location.hash = 'filter.data=none&sort.ranking=up&metric.rates=x&search=%&page=x'")
    other.wait_for_function("document.getElementById('search').value === '%'")
    assert other.get_by_label("Data set", exact=True).input_value() == "all"
    assert sorted_head(other, "ranking") == ("Rank", "ascending")
    for opened in (page, other):
        settled(opened)


@pytest.mark.browser
def test_an_address_opens_with_the_view_that_it_holds(open_page: Open, html: str) -> None:
    page = settled(open_page(html))
    page.get_by_label("Data set", exact=True).select_option("cifar10")
    page.locator("#attacks-section").get_by_label("Figure", exact=True).select_option("RA")
    press(page, "ranking", "ASR (%)")
    press(page, "cells", "ACC (%)")
    page.get_by_label("Search").fill("cifar")
    page.get_by_role("button", name="Next").click()
    assert page.locator("#range").inner_text() == "51 to 65 of 65"
    view = settled(page).evaluate("location.hash")
    shown = {table: page.locator(f"#{table}").inner_text() for table in ("ranking", "attacks", "cells")}
    reopened(page, view)
    assert page.evaluate("location.hash") == view
    assert page.get_by_label("Data set", exact=True).input_value() == "cifar10"
    assert page.locator("#attacks-section").get_by_label("Figure", exact=True).input_value() == "RA"
    assert page.get_by_label("Search").input_value() == "cifar"
    assert sorted_head(page, "ranking") == ("ASR (%)", "ascending")
    assert sorted_head(page, "cells")[0] == "ACC (%)"
    assert page.locator("#range").inner_text() == "51 to 65 of 65"
    assert {table: page.locator(f"#{table}").inner_text() for table in shown} == shown


@pytest.mark.browser
@pytest.mark.parametrize(
    ("given", "found", "cells"),
    [
        ("#page=2", "#page=2", "51 to 100 of 130"),
        ("#page=9", "#page=3", "101 to 130 of 130"),
        ("#page=-9", "", "1 to 50 of 130"),
        ("#page=two", "", "1 to 50 of 130"),
    ],
)
def test_a_page_of_the_cells_that_there_is_not_becomes_one_that_there_is(
    open_page: Open, html: str, given: str, found: str, cells: str
) -> None:
    page = reopened(settled(open_page(html)), given)
    assert page.locator("#range").inner_text() == cells
    assert page.evaluate("location.hash") == found


@pytest.mark.browser
def test_hostile_names_are_read_not_run(open_page: Open, board: Leaderboard) -> None:
    for text in (HOSTILE, "<img src=x onerror=alert(1)>", "__proto__", "constructor"):
        page = settled(open_page(render_leaderboard(hostile_board(board, text))))
        shown = text if text != HOSTILE else "<script>document.title='owned'</script>red"
        assert page.title() == f"{shown} · unbackdoor"
        tables = ("ranking", "attacks", "rates", "scanners", "scanners-attacks", "trainers", "trainers-rates")
        for table in (*tables, "sifters", "sifters-attacks", "sifters-rates"):
            assert column(page, table, "Method") == [shown]
        assert page.locator("#scatter-legend li").inner_text() == shown
        assert len(page.locator("#scatter-chart").evaluate(MARKS)) == 1
        page.get_by_label(shown, exact=True).select_option(shown)
        assert page.locator("#cells tbody tr").count() == 2
        assert page.locator("img, #cells script").count() == 0
        settled(page)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light"), (1280, "dark")])
def test_the_page_can_be_read_at_every_width_and_never_scrolls_sideways(
    open_page: Open, html: str, width: int, scheme: str
) -> None:
    page = settled(open_page(html, width=width, scheme=scheme))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 500
    assert [found for found in contrasts if found[0] < 4.5] == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 26)" if scheme == "dark" else "rgb(251, 250, 248)"
    )


@pytest.mark.browser
def test_ten_thousand_cells_and_hundreds_of_selections_can_be_used(open_page: Open, board: Leaderboard) -> None:
    methods = tuple(f"method {n}" for n in range(14))
    attacks = tuple(f"attack {n}" for n in range(8))
    filters = [
        Filter(name="seed", title="Seed", values=[str(n) for n in range(150)]),
        Filter(name="data", title="Data set", values=["cifar10"]),
    ]
    selections = {
        (seed, data): selection(n, methods, attacks)
        for n, seed in enumerate(["", *filters[0].values])
        for data in ("", "cifar10")
    }
    big = dataclasses.replace(board, filters=filters, attacks=attacks, selections=selections, cells=cells(10_000))
    text = render_leaderboard(big)
    assert len(text) < 7_000_000
    page = settled(open_page(text))
    assert len(page.locator("#scatter-chart").evaluate(MARKS)) == 14 * 8 - 1
    page.get_by_label("Seed", exact=True).select_option("7")
    assert page.locator("#range").inner_text() == "1 to 36 of 36"
    page.get_by_label("Seed", exact=True).select_option("all")
    press(page, "cells", "error")
    assert column(page, "cells", "error")[0] == "out of memory in cell 39"
    page.get_by_label("Search").fill("memory 9999")
    assert page.locator("#range").inner_text() == "1 to 1 of 1"
    settled(page)
