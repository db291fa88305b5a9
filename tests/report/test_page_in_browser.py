"""The report as a reader sees it: headless Chromium, from a file, with every request watched."""

import math
import shutil

import pytest

from rlkd_nemo.report.audit import RolloutAudit
from rlkd_nemo.report.metrics import MetricsLog
from rlkd_nemo.report.page import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs the package playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="the browser test needs chromium or google-chrome on the PATH"),
    pytest.mark.timeout(180),
]

# Pixels of the first curve's colour; grid and labels are grey.
PAINTED = """canvas => {
  const copy = Object.assign(document.createElement("canvas"), {width: canvas.width, height: canvas.height});
  const context = copy.getContext("2d", {willReadFrequently: true});
  context.drawImage(canvas, 0, 0);
  const {data} = context.getImageData(0, 0, copy.width, copy.height);
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--c0").trim();
  const wanted = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
  const near = i => wanted.every((value, part) => Math.abs(value - data[i + part]) < 12);
  let painted = 0;
  for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200 && near(i)) painted += 1;
  return painted;
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Opens a file; after the test the console must be clean and nothing else requested."""
    said, requested, pages = [], [], []

    def visit(path, **options):
        page = browser.new_page(viewport={"width": 1366, "height": 768}, **options)
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(path.as_uri())
        return page

    yield visit
    assert said == []
    assert [url for url in requested if not url.startswith(("file://", "data:"))] == []
    assert len([url for url in requested if url.startswith("file://")]) == len(pages)
    for page in pages:
        page.close()


@pytest.fixture
def report(tmp_path, rollout, parted):
    def build(name="run", text="2 + 2 = 4"):
        run = tmp_path / name
        with MetricsLog(run) as metrics:
            for step in range(61):
                values = {"reward/total": math.log1p(step), "loss/total": -0.1 * step, "loss/kl_old": 0.01 * step}
                if step % 5 == 0:
                    accuracy = 0.3 + 0.005 * step
                    values |= {"validation/accuracy": accuracy, "validation/accuracy_low": accuracy - 0.05}
                    values |= {"validation/accuracy_high": accuracy + 0.05}
                values["loss/oddity"] = float("nan") if step == 7 else 1.0
                metrics.log(step, values)
        RolloutAudit(run).write(60, *([part] for part in rollout(text, detail=parted)))
        return run

    return build


def draw_all(page):
    """Unfold and scroll through, since plots are drawn when they come into view."""
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    for holder in page.query_selector_all("[data-plot]"):
        holder.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('[data-plot]')].every(holder => holder.querySelector('canvas'))"
    )
    page.wait_for_timeout(200)
    return page.query_selector_all("canvas")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_is_drawn(report, open_page, scheme):
    page = open_page(write_report(report(), "A run", {"student_accuracy_after": 0.7}), color_scheme=scheme)
    canvases = draw_all(page)
    assert len(canvases) == 6  # five metrics and the count of numbers that were not finite
    for canvas in canvases:
        # One marker is about 28 pixels; the count of non-finite numbers has a single one.
        assert canvas.evaluate(PAINTED) > 20
    # A line of 2 pixels across a plot some 300 wide; the 61 steps have no markers.
    assert sum(canvas.evaluate(PAINTED) > 400 for canvas in canvases) == 5
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1366


def test_legend_shows_last_values_and_follows_the_cursor(report, open_page):
    page = open_page(write_report(report(), "A run", {}))
    draw_all(page)
    figure = page.locator("figure", has=page.locator("h3", has_text="Accuracy"))
    assert figure.locator(".at").inner_text() == "last step 60"
    # 0.3 + 0.005 * 60, and 30 in the middle
    assert figure.locator(".legend").inner_text().split() == ["accuracy", "0.6", "(0.55", "to", "0.65)"]
    figure.scroll_into_view_if_needed()
    box = figure.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.wait_for_function("[...document.querySelectorAll('.at')].some(at => at.textContent === 'at step 30')")
    assert "0.45 (0.4 to 0.5)" in figure.locator(".legend").inner_text()
    figure.locator(".legend button").click()
    assert figure.locator(".legend button").get_attribute("aria-pressed") == "false"


def test_several_runs_share_a_plot(report, open_page, tmp_path):
    page = open_page(write_report(tmp_path, "Two", {}, runs={"grpo": report("a"), "trrd": report("b")}))
    assert len(draw_all(page)) == 6
    names = page.locator("figure", has=page.locator("h3", has_text="Accuracy")).locator(".legend button")
    assert [text.split()[0] for text in names.all_inner_texts()] == ["grpo", "trrd"]


def test_steps_stand_side_by_side_and_the_parting_is_marked(report, open_page):
    page = open_page(write_report(report(), "A run", {}))
    assert [row.split("\t")[-1].strip() for row in page.locator(".steps tbody tr").all_inner_texts()] == [
        "✓ follows", "✕ parts here", "",
    ]  # fmt: skip
    assert page.locator(".steps tbody tr.parts td").first.inner_text().startswith("guess")


def test_a_response_with_a_script_is_shown_and_not_run(report, open_page):
    evil = "<script>document.title = 'taken'; alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"
    page = open_page(write_report(report(text=evil), "A run", {}))
    assert page.title() == "A run"
    assert page.locator(".texts pre").nth(1).inner_text() == evil
