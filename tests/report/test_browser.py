"""A page in a real browser: it draws, its buttons do what they say, by keyboard too, and nothing complains."""

from __future__ import annotations

import itertools
import math
import shutil

import pytest

from jumpstart.comparison.report import Report
from jumpstart.report import jumps

pytest.importorskip("plotly")
api = pytest.importorskip("playwright.sync_api", reason="browser tests need: pip install playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
HOSTILE = "</script><b>jumps</b>"
# The least contrast of a text with the page, by WCAG's formula, of which 4.5 is asked.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/\\d+/g).slice(0, 3).map((v) => {
      v /= 255;
      return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const seen = [...document.querySelectorAll("p, td, a, button")].filter((e) => e.offsetParent);
  return Math.min(...seen.map((e) => {
    const ink = light(getComputedStyle(e).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }));
}"""


class Jump:
    accepted, outcome, cause = True, type("O", (), {"name": "ACCEPTED", "value": "The weights moved."}), ""
    before, predicted, actual, horizon, seconds, gradient_evaluations = 1.0, 0.4, 0.5, 3.0, 0.1, 2.0


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    losses = {"AdamW": (1.0, 0.5, 0.1, 0.01), HOSTILE: (1.0, math.nan, 1e-3, 1e-5), "SGD": (1.0, 0.9, 0.8, 0.7)}
    rows = []
    for name, of in losses.items():
        for k, loss in enumerate(of):
            counted = {"jumps": k, "accepted": k} if name == HOSTILE else {}
            at = {"contender": name, "step": k, "gradient_evaluations": 3 * k, "seconds": k / 10, **counted}
            rows.append({**at, "loss": loss, "accuracy": k / 4})
    found = Report("run", rows, {"metrics": ["accuracy"]}, [0])
    ended = [{"step": k, "seconds": k / 10, "gradient_evaluations": 3 * k} for k in (1, 2)]
    found.jumps = [jumps.row(HOSTILE, "jump", Jump(), **where) for where in ended]
    square = {"of": 4, "points": [[0, 1, 0, 1], [0, 0, 1, 1]], "values": [1e-3, 1, 2, 3]}
    found.residuals = [{"who": HOSTILE, "term": "edge", **square}]
    return found.html(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module", params=[(1100, "light"), (390, "dark")], ids=["laptop", "phone"])
def page(request, browser, page_file):
    """The drawn page; whatever the console says, or the network is asked for, fails the test."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, accept_downloads=True)
    found, said = context.new_page(), []
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda request: said.append(request.url) if not request.url.startswith("blob:") else None)
    found.goto(page_file.as_uri())
    found.wait_for_selector("html[data-drawn]", timeout=60_000, state="attached")
    yield found
    context.close()
    assert said == [page_file.as_uri()]


def drawn_anew(page, ink):
    """Wait for another colour; the page itself may evaluate nothing, so that this asks again and again."""
    for _ in range(200):
        if page.eval_on_selector("#c0", "box => box.layout.font.color") != ink:
            return
        page.wait_for_timeout(50)
    pytest.fail("the plots keep the colours of the other scheme")


def curves(page, chart=0):
    return page.eval_on_selector(f"#c{chart}", "box => box.data.map(trace => trace.name)")


def test_names_for_who_does_not_see_it(page):
    """Every control has a name, every plot is an image with words, headings come in order, focus goes down the page."""
    assert page.eval_on_selector_all(
        "[role=img]", "boxes => boxes.every(box => box.getAttribute('aria-label').length > 20)"
    )
    assert page.eval_on_selector_all(
        "button", "all => all.every(b => (b.textContent + (b.getAttribute('aria-label') || '')).trim())"
    )
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the results"
    assert page.eval_on_selector_all("[tabindex]", "all => all.every(e => e.tabIndex <= 0)")
    assert page.evaluate(CONTRAST) >= 4.5


def test_tables_are_sorted_and_saved_and_plots_have_numbers(page):
    table = page.locator("table").first
    head = table.get_by_role("button", name="final loss")
    column = "rows => rows.map(row => row.cells[5].textContent)"
    head.click()
    up = page.eval_on_selector_all("table:first-of-type >> nth=0 >> tbody tr", column)
    assert [float(v) for v in up] == sorted(map(float, up)) and table.locator("th[aria-sort=ascending]").count() == 1
    head.click()
    assert page.eval_on_selector_all("table:first-of-type >> nth=0 >> tbody tr", column) == up[::-1]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Where each ended as a CSV file").click()
    lines = waiting.value.path().read_text().splitlines()
    assert waiting.value.suggested_filename == "Where-each-ended.csv" and len(lines) == 4 and HOSTILE in "".join(lines)
    details = page.locator("details").first
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    details.locator("tbody tr").first.wait_for()
    assert (
        details.locator("tbody tr").count() == 12
        and details.locator("caption").inner_text() == "Loss of each contender"
    )


def test_the_page_does_what_its_buttons_say(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("b").count() == 0 and page.locator("svg.main-svg").count() > 3
    # A name is switched in all plots of its section; a gap is a gap.
    assert "AdamW" in curves(page) and "AdamW" in curves(page, 1)
    assert page.eval_on_selector("#c0", "box => box.data.find(t => t.name.includes('jumps')).y[1]") is None
    assert page.eval_on_selector("#c0", "box => box.data.filter(t => t.name.endsWith('jump kept')).length") == 1
    button = page.locator(".legend button", has_text="AdamW").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert "AdamW" not in curves(page) and "AdamW" not in curves(page, 1)
    button.focus()
    page.keyboard.press("Enter")
    assert "AdamW" in curves(page) and page.locator("#status").inner_text() == "AdamW shown."
    # Axes.
    page.get_by_label("gradient evaluations").first.check()
    shown = page.eval_on_selector("#c0", "box => [box.layout.xaxis.title.text, box.data[0].x[3]]")
    assert shown == ["gradient evaluations", 9]
    page.get_by_label("gradient evaluations").first.press("ArrowRight")
    assert page.eval_on_selector("#c0", "box => box.layout.xaxis.title.text") == "steps"
    assert page.eval_on_selector("#c0", "box => box.layout.yaxis.type") == "log"
    page.get_by_role("button", name="Logarithmic").first.click()
    assert page.eval_on_selector("#c0", "box => box.layout.yaxis.type") == "linear"
    side = page.get_by_role("button", name="Side by side")
    side.click()
    assert set(page.eval_on_selector("#c0", "box => box.data.map(t => t.xaxis)")) == {"x", "x2"}
    side.click()
    # Colours are those of the scheme, also once it changes.
    ink = page.eval_on_selector("#c0", "box => box.layout.font.color")
    page.emulate_media(color_scheme="dark" if ink == "#1b1b1f" else "light")
    drawn_anew(page, ink)
