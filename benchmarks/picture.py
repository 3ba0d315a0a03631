"""The picture of a leaderboard in README: the page in results/small/, as Chromium shows it.

Writes results/small/page.png.

    python benchmarks/picture.py
"""

from __future__ import annotations

from playwright.sync_api import sync_playwright
from record import HERE, chromium

PAGE = HERE / "results" / "small" / "report.html"


def main() -> None:
    """Open the page and take its picture."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1400}, color_scheme="light")
        page.goto(PAGE.as_uri())
        page.wait_for_selector("table tbody tr")
        page.screenshot(path=PAGE.with_name("page.png"))
        browser.close()


if __name__ == "__main__":
    main()
