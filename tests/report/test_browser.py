"""The pages in a real browser. Every test fails on any request, console message, dialog or script error."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.report.conftest import CIFAR, HOSTILE, INDICES, Watch
from unbackdoor.report import Fact, Metric, Report, anomaly_chart

pytestmark = pytest.mark.browser

Open = Callable[..., Any]

# Boxes of the bars of the n-th drawing that can be seen, from the top or the left, with their colours.
BARS = """n => [...document.querySelectorAll('.drawing svg')]
    .filter(svg => svg.checkVisibility())[n]
    .querySelectorAll('.mark-rect path').values().map(bar => {
        const box = bar.getBoundingClientRect(), fill = getComputedStyle(bar).fill;
        return {left: box.left, top: box.top, width: box.width, height: box.height, fill};
    }).toArray()"""

# What can be read, its colour, and the colour of the nearest ground below it.
CONTRASTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = colour => {
        const linear = numbers(colour).slice(0, 3).map(value => {
            const part = value / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const parts = numbers(getComputedStyle(at).backgroundColor);
            if (parts.length === 3 || parts[3] === 1) return getComputedStyle(at).backgroundColor;
        }
        throw new Error('no ground');
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        const ink = element.namespaceURI.endsWith('svg') ? style.fill : style.color;
        const [dark, light] = [luminance(ink), luminance(ground(element))].sort((a, b) => a - b);
        found.push([(light + 0.05) / (dark + 0.05), walker.currentNode.data.trim()]);
    }
    return found;
}"""

# Texts of charts that overlap each other or leave the page at either side.
COLLISIONS = """() => [...document.querySelectorAll('.drawing svg')].flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')]
        .filter(text => text.checkVisibility())
        .map(text => [text.textContent, text.getBoundingClientRect()]);
    const outside = texts.filter(([, box]) => box.left < 0 || box.right > innerWidth);
    const cross = (a, b, start, end, slack) => a[start] < b[end] - slack && b[start] < a[end] - slack;
    const meet = (a, b) => cross(a, b, 'left', 'right', 1) && cross(a, b, 'top', 'bottom', 4);
    const clashes = texts.flatMap(([text, box], n) =>
        texts.slice(n + 1).filter(([, other]) => meet(box, other)).map(([other]) => text + ' / ' + other));
    return [...outside.map(([text]) => text + ' is cut off'), ...clashes];
})"""


def colour_of(page: Any, variable: str) -> str:
    script = """name => {
        const probe = document.body.appendChild(document.createElement('i'));
        probe.style.color = `var(${name})`;
        const colour = getComputedStyle(probe).color;
        probe.remove();
        return colour;
    }"""
    result: str = page.evaluate(script, variable)
    return result


def is_drawn(page: Any, element: Any) -> bool:
    """Whether a screenshot of the element shows more than a single colour."""
    picture = np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))
    return len(np.unique(picture.reshape(-1, 3), axis=0)) > 1


def test_pictures_show_the_pixels_of_their_tensors(open_page: Open, full_page: str, full_report: Report) -> None:
    page = open_page(full_page)
    script = """image => {
        const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        const letters = Array.from(data, value => String.fromCharCode(value)).join('');
        return [canvas.width, canvas.height, btoa(letters)];
    }"""
    expected = [picture for gallery in full_report.galleries for picture in gallery.pictures]
    images = page.locator("img").element_handles()
    assert len(images) == len(expected) == 12
    for image, picture in zip(images, expected, strict=True):
        width, height, data = image.evaluate(script)
        pixels = np.frombuffer(base64.b64decode(data), dtype=np.uint8).reshape(height, width, 4)
        assert min(width, height) >= 96
        assert (pixels[:, :, 3] == 255).all()
        side = picture.image.shape[2]
        true = (picture.image * 255).round().numpy().transpose(1, 2, 0)
        enlarged = np.kron(true, np.ones((height // side, width // side, 1)))
        np.testing.assert_array_equal(pixels[:, :, :3], np.broadcast_to(enlarged, (height, width, 3)))
        assert image.get_attribute("alt") == picture.caption
        assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"


@pytest.mark.parametrize("width", [360, 1280])
def test_bars_are_as_long_as_their_index_and_only_the_flagged_has_the_accent_colour(
    open_page: Open, full_page: str, width: int
) -> None:
    page = open_page(full_page, width=width)
    bars = sorted(page.evaluate(BARS, 1), key=lambda bar: bar["top"])
    assert len(bars) == len(CIFAR)
    assert all(bar["width"] > 0 and bar["height"] > 5 for bar in bars)
    scale = bars[7]["width"] / INDICES[7]
    np.testing.assert_allclose([bar["width"] for bar in bars], np.array(INDICES) * scale, atol=0.6)
    accent, neutral = colour_of(page, "--accent"), colour_of(page, "--bar")
    assert accent != neutral
    assert [bar["fill"] for bar in bars] == [accent if n == 7 else neutral for n in range(len(CIFAR))]
    drawing = page.locator(f".drawing .{'narrow' if width == 360 else 'wide'} svg").nth(1)
    names = [text for text in drawing.locator("text").all_text_contents() if " · " in text]
    assert names == [f"{n} · {name}" for n, name in enumerate(CIFAR)]
    right = "texts => Math.max(...texts.map(text => text.getBoundingClientRect().right))"
    assert drawing.locator("text", has_text=" · ").evaluate_all(right) < bars[0]["left"]
    assert is_drawn(page, drawing)


@pytest.mark.parametrize("width", [360, 1280])
def test_two_hundred_classes_have_two_hundred_bars(open_page: Open, width: int) -> None:
    indices = [1 + (n * 37 % 101) / 100 for n in range(200)]
    indices[42] = 6.0
    page = open_page(
        Report(title="t", charts=[anomaly_chart([f"n{n}" for n in range(200)], indices, 2.5, [42])]),
        width=width,
    )
    bars = sorted(page.evaluate(BARS, 0), key=lambda bar: bar["left"])
    assert len(bars) == 200
    assert all(bar["width"] * bar["height"] > 0 for bar in bars)
    np.testing.assert_allclose([bar["height"] for bar in bars], np.array(indices) * bars[42]["height"] / 6.0, atol=0.6)
    assert {n for n, bar in enumerate(bars) if bar["fill"] == colour_of(page, "--accent")} == {42}
    assert page.locator(".drawing svg:visible text", has_text="42").count() == 1
    assert page.evaluate(COLLISIONS) == []


def test_marks_and_whiskers_stand_at_their_percentages(open_page: Open, full_page: str) -> None:
    page = open_page(full_page)
    drawing = page.locator(".drawing .wide svg").nth(0)
    centre = "element => { const box = element.getBoundingClientRect(); return box.left + box.width / 2; }"
    zero, hundred = (drawing.locator("text").get_by_text(end, exact=True).evaluate(centre) for end in ("0", "100"))

    def percent(x: float) -> float:
        return 100 * (x - zero) / (hundred - zero)

    marks = [percent(mark.evaluate(centre)) for mark in drawing.locator(".role-mark.mark-symbol path").all()]
    assert sorted(marks) == pytest.approx([20, 80, 90, 93.1, 94.2], abs=0.7)
    ends = "line => { const box = line.getBoundingClientRect(); return [box.left, box.right]; }"
    spans = [[percent(x) for x in rule.evaluate(ends)] for rule in drawing.locator(".role-mark line").all()]
    assert len(spans) == 5
    assert sorted(spans)[0] == pytest.approx([15, 26], abs=0.7)
    assert {"before", "after"} <= set(drawing.locator("text").all_text_contents())


def test_a_falling_curve_falls_from_left_to_right(open_page: Open, full_page: str) -> None:
    page = open_page(full_page)
    line = page.locator(".drawing .wide svg").nth(2).locator(".mark-line path")
    ends = """path => [0, path.getTotalLength()].map(at => path.getPointAtLength(at))
        .map(point => [point.x, point.y])"""
    (left, top), (right, bottom) = line.evaluate(ends)
    assert right - left > 400
    assert bottom - top > 100
    assert is_drawn(page, page.locator(".drawing .wide svg").nth(2))


@pytest.mark.parametrize("width", [320, 360, 641, 1280])
def test_the_page_never_scrolls_sideways_and_no_label_is_cut_or_covered(
    open_page: Open, full_page: str, width: int
) -> None:
    page = open_page(full_page, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(COLLISIONS) == []
    shown = "narrow" if width <= 640 else "wide"
    assert page.locator(".drawing svg:visible").count() == page.locator(f".drawing .{shown} svg").count() == 3


def test_a_table_that_is_too_wide_scrolls_in_its_own_box(open_page: Open) -> None:
    metric = Metric(name="m", better="higher")
    page = open_page(Report(title="t", metrics=[metric]), width=360)
    page.evaluate(
        "document.querySelector('.metrics').insertAdjacentHTML('beforeend', '<tbody><tr><td><pre>'"
        " + 'x'.repeat(200) + '</pre></td></tr></tbody>')"
    )
    box = page.locator(".scroll").evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert box[0] > 1000 > box[1]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("width", [360, 1280])
def test_dark_and_light_differ_and_all_text_can_be_read_in_both(open_page: Open, full_page: str, width: int) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        page = open_page(full_page, scheme=scheme, width=width)
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 80
        assert [found for found in contrasts if found[0] < 4.5] == []
    assert grounds == {"light": "rgb(251, 250, 248)", "dark": "rgb(20, 23, 26)"}


def test_print_is_light_and_wide_even_for_readers_in_the_dark(open_page: Open, full_page: str) -> None:
    page = open_page(full_page, scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 248)"
    assert page.locator(".drawing .narrow svg:visible").count() == 0
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_hostile_class_names_are_read_not_run(open_page: Open) -> None:
    names = [HOSTILE, "<img src=x onerror=alert(1)>", "</text></svg><script>alert(1)</script>"]
    page = open_page(Report(title=HOSTILE, charts=[anomaly_chart(names, [1, 2, 3], 2.5, [0, 1, 2])], notes=names))
    shown = "<script>document.title='owned'</script>red"
    assert page.title() == f"{shown} · unbackdoor"
    assert page.locator("h1").inner_text() == shown
    assert page.locator("li").all_inner_texts() == [shown, *names[1:]]
    assert page.evaluate("document.scripts.length") == 0
    labels = page.locator(".drawing .wide svg text").all_text_contents()
    assert any(label.startswith("0 · <script>document.") for label in labels)


def test_a_page_with_nothing_but_a_title_renders(open_page: Open) -> None:
    page = open_page(Report(title="Only a title"), width=360)
    assert page.locator("h1").inner_text() == "Only a title"
    assert page.locator("section, table, img, figure").count() == 0


def test_a_click_selects_the_whole_command_to_copy(open_page: Open) -> None:
    command = "unbackdoor scan model.safetensors --seed 0 " + "--option value " * 20
    facts = {"What was run": [Fact(name="Command", value=command), Fact(name="Seed", value="0")]}
    page = open_page(Report(title="t", facts=facts), width=360)
    page.locator("pre").click()
    assert page.evaluate("getSelection().toString()").strip() == command.strip()


@pytest.mark.parametrize("width", [360, 1280])
def test_headers_names_and_roles_are_there_for_those_who_listen(open_page: Open, full_page: str, width: int) -> None:
    page = open_page(full_page, width=width)
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("region", name="Verdict").count() == 1
    for header in ("Metric", "Before", "After", "Change"):
        assert page.get_by_role("columnheader", name=header, exact=True).count() == 1, header
    for header in ("Accuracy (ACC)", "Seed", "m.safetensors"):
        assert page.get_by_role("rowheader", name=header, exact=True).count() == 1, header
    charts = page.get_by_role("img", name="Bar chart of the anomaly index of 10 classes")
    assert [chart.is_visible() for chart in charts.all()] == [True]
    # Chromium itself, which forgets the roles of cells that are displayed in another way.
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
    roles = [node["role"]["value"] for node in tree["nodes"] if not node["ignored"]]
    assert roles.count("rowheader") == 3 + 3


def test_the_watch_sees_requests_and_scripts(open_page: Open, watch: Watch) -> None:
    page = open_page("<img src='https://example.org/x.png'><script>alert(1); nothing()</script>")
    page.wait_for_load_state()
    assert watch.requests == ["https://example.org/x.png"]
    assert any("dialog: 1" in complaint for complaint in watch.complaints)
    assert any("nothing is not defined" in complaint for complaint in watch.complaints)
    watch.requests.clear()
    watch.complaints.clear()
