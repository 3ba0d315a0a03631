from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from unbackdoor.errors import InputError, OutputError
from unbackdoor.report import (
    Chart,
    Fact,
    Gallery,
    Interval,
    Metric,
    Picture,
    Report,
    Verdict,
    render,
    write_report,
)

VOID = {"meta", "link", "img", "br", "hr", "col"}


class Outline(HTMLParser):
    """Collects tags, attributes and visible text, and checks that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_a_title_is_enough_for_a_page() -> None:
    outline = Outline(render(Report(title="Scan of model.safetensors")))
    assert ("html", {"lang": "en"}) in outline.tags
    assert "Scan of model.safetensors · unbackdoor" in outline.text
    assert [tag for tag, _ in outline.tags].count("h1") == 1
    assert "h2" not in {tag for tag, _ in outline.tags}


def test_every_part_of_a_report_is_on_the_page(full_page: str) -> None:
    text = Outline(full_page).text
    for part in (
        "Not repaired The backdoor still works",
        "94.2 % [93.7, 94.6] 93.1 % [92.6, 93.6] −1.1 points",
        "−70.0 points better",
        "Higher is better. Share of clean test images",
        "not measured 80.0 % [75.0, 84.0]",
        "Anomaly index of each class",
        "Training loss over epoch",
        "The trigger Found and true.",
        "picture 6",
        "Run unbackdoor purify model.safetensors --method npd with more clean images.",
        "The clean images were drawn by seed 0.",
        "Inputs",
        "9f86d081884c7d65" * 4,
    ):
        assert part in text, part
    assert "Empty" not in text


def test_a_page_needs_nothing_but_itself(full_page: str) -> None:
    outline = Outline(full_page)
    assert {tag for tag, _ in outline.tags}.isdisjoint({"script", "iframe", "object", "embed", "a", "base", "form"})
    for tag, attributes in outline.tags:
        for name in ("src", "href", "srcset", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in full_page
    assert "@import" not in full_page
    assert len(full_page) < 600_000


def test_the_policy_of_the_page_allows_its_own_style_and_nothing_else() -> None:
    html = render(Report(title="t"))
    style = re.search(r"<style>(.*)</style>", html, re.DOTALL)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert style
    assert policy
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1] == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


EVIL = "<img src=x onerror=alert(1)>\"'&\x1b[31m\x07\u202e/home/anna/secret/x/y.pt"
HARMLESS = "<img src=x onerror=alert(1)>\"'&"


def test_text_of_strangers_is_shown_as_text_wherever_it_stands() -> None:
    figure = Interval(value=0.5, low=0.4, high=0.6)
    report = Report(
        title=EVIL,
        verdict=Verdict(level="info", headline=EVIL, detail=EVIL, calibrated=False),
        metrics=[Metric(name=EVIL, explanation=EVIL, before=figure, after=figure, better="higher")],
        galleries=[Gallery(title=EVIL, explanation=EVIL, pictures=[Picture(caption=EVIL, image=torch.zeros(1, 9, 9))])],
        charts=[
            Chart(
                title=EVIL,
                explanation=EVIL,
                svg='<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>',
            )
        ],
        facts={EVIL: [Fact(name=EVIL, value=EVIL), Fact(name="Command", value=EVIL)]},
        next_steps=[EVIL, f"`{EVIL}`"],
        notes=[EVIL],
    )
    html = render(report)
    outline = Outline(html)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", html)
    assert "anna" not in html
    images = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert [(image["alt"] or "")[: len(HARMLESS)] for image in images] == [HARMLESS]
    # title twice, verdict 2, metric 2, gallery 2 and caption, chart 2, facts 4, steps 2, note 1
    assert outline.text.count(HARMLESS) >= 17


def test_backticks_become_code_only_in_pairs() -> None:
    html = render(Report(title="t", notes=["run `a <b>` and `c`", "a lone ` stays"]))
    assert "<li>run <code>a &lt;b&gt;</code> and <code>c</code></li>" in html
    assert "<li>a lone ` stays</li>" in html


def test_paths_lose_their_folders_in_commands_too() -> None:
    fact = Fact(name="Command", value="unbackdoor scan /home/anna/models/a.pt --out '/home/anna/my out/r.html'")
    text = Outline(render(Report(title="t", facts={"What was run": [fact]}))).text
    assert "unbackdoor scan models/a.pt --out 'my out/r.html'" in text


@pytest.mark.parametrize(
    ("level", "label"),
    [
        ("backdoored", "Backdoored"),
        ("no evidence", "No evidence found"),
        ("inconclusive", "Inconclusive"),
        ("repaired", "Repaired"),
        ("not repaired", "Not repaired"),
        ("info", "Information"),
    ],
)
def test_a_verdict_says_in_words_what_it_is_and_never_promises_safety(level: str, label: str) -> None:
    verdict = Verdict(level=level, headline="h", calibrated=True)  # type: ignore[arg-type]
    html = render(Report(title="t", verdict=verdict))
    text = Outline(html).text
    assert f"{label} h" in text
    assert not re.search(r"\b(safe|secure|trustworthy)\b", text, re.IGNORECASE)
    assert ("does not prove that there is no backdoor" in text) == (level == "no evidence")
    assert 'aria-hidden="true"' in html


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_threshold_that_was_never_calibrated_is_pointed_out(calibrated: bool) -> None:
    verdict = Verdict(level="backdoored", headline="h", calibrated=calibrated)
    text = Outline(render(Report(title="t", verdict=verdict))).text
    assert ("Threshold not calibrated." in text) == (not calibrated)


def test_figures_of_one_moment_make_a_table_without_comparison() -> None:
    metric = Metric(name="ASR", before=Interval(value=0.5, low=0.4, high=0.6), better="lower")
    text = Outline(render(Report(title="t", metrics=[metric]))).text
    assert "Metric Measured ASR 50.0 % [40.0, 60.0] Lower is better." in text
    assert "After" not in text


def test_cells_keep_their_roles_where_phones_display_them_in_another_way(full_page: str) -> None:
    table = full_page.partition('<table class="metrics" role="table">')[2].partition("</table>")[0]
    cells = [attributes for tag, attributes in Outline(table).tags if tag in {"th", "td", "tr", "thead", "tbody"}]
    assert len(cells) == 1 + 1 + 4 + 3 * (1 + 2 + 4 + 1)
    assert all(attributes.get("role") for attributes in cells)


def test_metrics_without_figures_still_make_a_page() -> None:
    text = Outline(render(Report(title="t", metrics=[Metric(name="ASR", better="lower")]))).text
    assert "ASR not measured" in text


def test_any_estimate_with_value_low_and_high_will_do() -> None:
    class Proportion:
        value, low, high = 0.25, 0.125, 0.5

    metric = Metric(name="ASR", after=Proportion(), better="lower")
    assert "25.0 % [12.5, 50.0]" in Outline(render(Report(title="t", metrics=[metric]))).text


def test_a_gallery_without_pictures_is_no_error() -> None:
    assert "nothing here" in render(Report(title="t", galleries=[Gallery(title="nothing here", pictures=[])]))


def test_the_same_report_gives_the_same_page(full_report: Report, full_page: str) -> None:
    assert render(full_report) == full_page


def test_the_written_file_is_the_rendered_page(tmp_path: Path) -> None:
    report = Report(title="Prüfung 猫 \ud800")
    write_report(tmp_path / "new" / "report.html", report)
    assert (tmp_path / "new" / "report.html").read_bytes() == render(report).encode()


def test_a_report_that_fails_leaves_no_file(tmp_path: Path) -> None:
    broken = Report(title="t", charts=[Chart(title="c", svg="no drawing")])
    with pytest.raises(InputError, match="the chart is not an SVG drawing"):
        write_report(tmp_path / "report.html", broken)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_report(tmp_path / "file" / "report.html", Report(title="t"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
