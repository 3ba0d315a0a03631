"""A real browser for the pages, and a report that uses every part of a page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from unbackdoor.report import (
    Fact,
    Gallery,
    Interval,
    Metric,
    Picture,
    Report,
    Verdict,
    anomaly_chart,
    curve_chart,
    render,
)

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
INDICES = (0.31, 0.72, 1.05, 0.02, 0.66, 0.41, 1.38, 4.62, 0.9, 0.55)
HOSTILE = "<script>document.title='owned'</script>\x1b[31m\x9b1mred\x1b]0;t\x07\u202e"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("no Chromium: none of chromium, chromium-browser, google-chrome is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as session:
        chromium = session.chromium.launch(executable_path=found[0], args=CHROMIUM_OPTIONS)
        yield chromium
        chromium.close()


@dataclass
class Watch:
    """What opened pages did that a report must not do."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def watch() -> Watch:
    """The record of requests and complaints of the pages that a test opened."""
    return Watch()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path, watch: Watch) -> Iterator[Callable[..., Any]]:
    """A function that opens a report (or HTML) in Chromium; nothing that it asks the network for is answered.

    After the test, any request, console message, dialog or script error is a failure.
    """
    pages = []

    def open_it(content: Report | str, *, width: int = 1280, scheme: str = "light") -> Any:
        file = tmp_path / f"page-{len(pages)}.html"
        file.write_text(content if isinstance(content, str) else render(content), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        pages.append(page)

        def answer(route: Any) -> None:
            if route.request.url == file.as_uri():
                route.continue_()
            else:
                watch.requests.append(route.request.url)
                route.abort()

        def dismiss(dialog: Any) -> None:
            watch.complaints.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.route("**/*", answer)
        page.on("console", lambda message: watch.complaints.append(message.text))
        page.on("pageerror", lambda error: watch.complaints.append(str(error)))
        page.on("dialog", dismiss)
        page.goto(file.as_uri())
        return page

    yield open_it
    for page in pages:
        page.close()
    assert watch == Watch()


@pytest.fixture(scope="session")
def full_page(full_report: Report) -> str:
    """The page of the full report, made once."""
    return render(full_report)


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


@pytest.fixture(scope="session")
def full_report() -> Report:
    """A report with every part, including long and hostile names."""
    generator = torch.Generator().manual_seed(0)

    def pictures(count: int, channels: int, side: int) -> list[Picture]:
        return [
            Picture(caption=f"picture {n}", image=torch.rand(channels, side, side, generator=generator))
            for n in range(count)
        ]

    return Report(
        title="Repair of cifar10-badnets-resnet18.safetensors",
        verdict=Verdict(
            level="not repaired",
            headline="The backdoor still works",
            detail="After `sau` the trigger still sends 31 % of the images to class 7.",
            calibrated=False,
        ),
        metrics=[
            Metric(
                name="Accuracy (ACC)",
                explanation="Share of clean test images that are classified correctly.",
                before=interval(0.942, 0.9372, 0.9463),
                after=interval(0.931, 0.9259, 0.9358),
                better="higher",
            ),
            Metric(
                name="Attack success rate (ASR)",
                explanation="Share of triggered images that are taken for the target class.",
                before=interval(0.9, 0.85, 0.93),
                after=interval(0.2, 0.15, 0.26),
                better="lower",
            ),
            Metric(name="Defence effectiveness rating (DER)", after=interval(0.8, 0.75, 0.84), better="higher"),
        ],
        charts=[
            anomaly_chart(CIFAR, INDICES, 2.0, [7]),
            curve_chart(list(range(1, 31)), [2.3 * 0.88**n for n in range(30)], "Epoch", "Training loss"),
        ],
        galleries=[
            Gallery(title="The trigger", explanation="Found and true.", pictures=pictures(2, 3, 32)),
            Gallery(title="Mask", pictures=pictures(1, 1, 28)),
            Gallery(title="Examples", pictures=pictures(7, 3, 32)),
            Gallery(title="Large", pictures=pictures(2, 3, 160)),
        ],
        next_steps=["Run `unbackdoor purify model.safetensors --method npd` with more clean images."],
        notes=["The clean images were drawn by seed 0.", f"A class is called {HOSTILE}."],
        facts={
            "What was run": [
                Fact(name="Command", value="unbackdoor purify '/home/anna/my secrets/m.safetensors' --seed 0"),
                Fact(name="Seed", value="0"),
                Fact(name="unbreakable" * 8, value="value" * 40),
            ],
            "Inputs": [Fact(name="m.safetensors", value="9f86d081884c7d65" * 4)],
            "Empty": [],
        },
    )
