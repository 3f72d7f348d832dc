"""The page in headless Chromium: two widths, light and dark, sorted, not wider than its window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from PIL import Image


def chromium(*flags: str) -> subprocess.CompletedProcess:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *flags]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (520, False), (520, True)])
def test_a_real_browser_draws_the_page(good, width, dark):
    """The screenshots stay in the test's folder."""
    picture = good / f"page-{width}-{'dark' if dark else 'light'}.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    page = (good / "report/index.html").as_uri()
    chromium(f"--window-size={width},1600", scheme, f"--screenshot={picture}", page)
    image = Image.open(picture).convert("L")
    ground = image.getpixel((3, 3))
    assert ground < 60 if dark else ground > 230
    assert image.size[0] == width
    assert image.getextrema()[1] - image.getextrema()[0] > 150  # something stands out from the ground


@needs_chromium
def test_it_prints_on_a_few_pages_whatever_the_screen_shows(good):
    """The document stays in the test's folder."""
    paper = good / "page.pdf"
    chromium(f"--print-to-pdf={paper}", "--no-pdf-header-footer", (good / "report/index.html").as_uri())
    assert 4 <= len(re.findall(rb"/Type ?/Page\b", paper.read_bytes())) <= 16


@needs_chromium
@pytest.mark.parametrize("width", [1280, 520])
def test_the_page_fits_its_width_and_its_tables_sort(good, tmp_path, width):
    probe = """<script>
      const header = document.querySelector("table.sortable th:nth-child(4) button");
      header.click(); header.click();
      const cells = header.closest("table").querySelectorAll("tr > td:nth-child(4)");
      document.title = JSON.stringify({
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        times: [...cells].map((cell) => Number(cell.dataset.value)),
      });
    </script>"""
    page = tmp_path / "page.html"
    page.write_text((good / "report/index.html").read_text().replace("</body>", probe + "</body>"))
    shown = chromium(f"--window-size={width},1600", "--dump-dom", page.as_uri()).stdout
    found = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
    assert found["overflow"] <= 0
    assert len(found["times"]) == 10
    assert found["times"] == sorted(found["times"])
