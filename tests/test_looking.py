"""The notebooks for looking: saved without widgets, and used with the mouse in JupyterLab, in headless Chromium."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from nbconvert import HTMLExporter
from scipy.spatial import cKDTree

from aamlib.runs import recorded_runs
from aamlib.widgets.scatter import ScatterView

ROOT = Path(__file__).parents[1]
NAMES = ("05_expert_q_values", "06_uncertain_frames", "07_entropy_versus_bald")
ENTROPY = "pong, entropy on 40 %, seed 0"
SCREENSHOTS = ROOT / "tests" / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 120_000  # milliseconds to wait for anything: CI machines are slow

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
in_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed, so no notebook is tried in a browser; .ci/run installs it."
)


@pytest.mark.parametrize("name", NAMES)
def test_saved_copies_hold_still_pictures_in_place_of_widgets(name, tmp_path):
    saved = tmp_path / "saved.ipynb"
    settings = {"exports": str(tmp_path)} if name.startswith("06") else {}
    papermill.execute_notebook(ROOT / "notebooks" / f"{name}.ipynb", saved, settings, progress_bar=False, cwd=tmp_path)
    notebook = nbformat.read(saved, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") >= {"05": 1, "06": 2, "07": 5}[name[:2]]
    assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "widgets" not in notebook.metadata
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert page.count('src="data:image/png;base64') == kinds.count("image/png")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab server on copies of the notebooks, with no settings of the user's; yields its folder and address."""
    folder = tmp_path_factory.mktemp("lab")
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    for name in NAMES:
        source = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
        for parameter, path in (("exports", folder / "exports"), ("runs", ROOT / "data" / "sample")):
            source = source.replace(f"{parameter} = None", f"{parameter} = '{json.dumps(str(path))[1:-1]}'")
        (notebooks / f"{name}.ipynb").write_text(source)
    variables = {
        name: str(folder / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
                     "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    }  # fmt: skip
    settings = folder / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root",
               "--IdentityProvider.token=test", f"--ServerApp.root_dir={notebooks}"]  # fmt: skip
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(path)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)
    try:
        facts = folder / "JUPYTER_RUNTIME_DIR" / f"jpserver-{server.pid}.json"
        until = time.monotonic() + SECONDS / 1000
        url = None
        while url is None:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
            with suppress(OSError, ValueError):  # not there yet, or half written
                url = json.loads(facts.read_text())["url"]
        yield folder, url
    finally:
        server.terminate()
        server.wait()


@contextmanager
def opened(lab, name):
    """The notebook in a page of 1280 pixels, run from top to bottom; a screenshot of the whole is kept at the end."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"]  # fmt: skip
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 4000})
        page.set_default_timeout(SECONDS)
        broken = []
        page.on("pageerror", lambda error: broken.append(str(error)))

        def listen(socket):
            """What fails in the kernel when a control is moved is sent to the page, which shows it nowhere."""
            socket.on("framereceived", lambda frame: broken.append(frame) if "Traceback" in str(frame) else None)

        page.on("websocket", listen)
        try:
            page.goto(f"{lab[1]}doc/tree/{name}.ipynb?token=test")
            # A kernel that does not exist yet is idle as well: Run All would be lost.
            page.locator(".jp-Toolbar-kernelName", has_text="Python 3 (ipykernel)").wait_for()
            page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
            page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
            page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
            page.locator(".aam-readout").first.wait_for()
            page.wait_for_function(
                """() => [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
                         .every((prompt) => /\\[\\d+\\]/.test(prompt.textContent))"""
            )
            yield page
            for kind in ("error", "stderr"):
                found = page.locator(f'.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.{kind}"]')
                assert found.all_inner_texts() == []
            assert broken == []
        finally:
            SCREENSHOTS.mkdir(exist_ok=True)
            page.screenshot(path=SCREENSHOTS / f"{name}.png")
            browser.close()


@contextmanager
def changing(page, picture, *, numbers=True):
    """What is done in the block changes the picture, and the first numbers on the page."""
    image = page.locator(f"{picture} img, img{picture}").first
    readout = page.locator(".aam-readout").first
    source, text = image.get_attribute("src"), readout.inner_text()
    yield
    page.wait_for_function(
        "([selector, source]) => document.querySelector(selector).src != source",
        arg=[f"{picture} img, img{picture}", source],
    )
    if numbers:
        page.wait_for_function("(text) => document.querySelector('.aam-readout').innerText != text", arg=text)


def turn(page, trait, key):
    """Press a key on the handle of a trait's slider."""
    page.locator(f".aam-{trait} .noUi-handle").first.press(key)


@contextmanager
def redrawn(page, canvas):
    """What is done in the block changes what is drawn on the canvas, which says so to no one."""
    before, until = canvas.screenshot(), time.monotonic() + SECONDS / 1000
    yield
    while canvas.screenshot() == before:
        assert time.monotonic() < until, "the canvas stays as it was"
        page.wait_for_timeout(100)
    page.wait_for_timeout(500)  # drawn to the end, for the screenshot


@in_browser
def test_expert_q_values(lab):
    with opened(lab, NAMES[0]) as page:
        with changing(page, ".aam-frame"):
            turn(page, "step", "ArrowRight")
        with changing(page, ".aam-policy"):
            page.locator(".aam-timeline img").click(position={"x": 300, "y": 100})
        with changing(page, ".aam-frame"):
            page.get_by_role("button", name="Most indifferent").click()
        with changing(page, ".aam-frame"):
            page.get_by_role("button", name="Most decisive").click()
        with changing(page, ".aam-frame"):
            page.locator("[class*=widget-play] button").first.click()
        page.locator("[class*=widget-play] button").first.click()
        with changing(page, ".aam-frame", numbers=False):
            page.locator(".aam-original_colours input").check()
        with changing(page, ".aam-entropy"):
            turn(page, "temperature", "ArrowRight")
        page.locator(".aam-seed input").fill("7")
        page.locator(".aam-seed input").press("Enter")
        page.locator(".aam-steps input").fill("90")
        page.locator(".aam-steps input").press("Enter")
        with changing(page, ".aam-timeline"), changing(page, ".aam-entropy"):
            page.locator(".aam-play").click()
        page.locator(".aam-readout", has_text="step 0 of 89").wait_for()
        page.locator(".aam-student select").select_option("none")
        page.locator(".aam-game select").select_option("breakout")
        with changing(page, ".aam-timeline"), changing(page, ".aam-policy"):
            page.locator(".aam-play").click()
        with changing(page, ".aam-frame"):
            turn(page, "step", "ArrowRight")


@in_browser
def test_uncertain_frames(lab):
    with opened(lab, NAMES[1]) as page:
        with changing(page, ".aam-grid"):
            turn(page, "round", "ArrowLeft")
        with changing(page, ".aam-motion"):
            page.locator(".aam-grid img").first.click(position={"x": 250, "y": 200})
        with changing(page, ".aam-grid"):
            page.locator(".aam-sort select").first.select_option("regret (Q-value lost)")
        with changing(page, ".aam-grid"):
            page.locator(".aam-agreement select").first.select_option("agree")
        with changing(page, ".aam-grid"):
            page.locator(".aam-agreement select").first.select_option("all")
        for trait in ("gaps", "percentiles"):
            with changing(page, ".aam-grid"):
                turn(page, trait, "PageUp")
        with changing(page, ".aam-grid"):
            page.locator(".aam-descending input").first.uncheck()
        before = set((lab[0] / "exports").iterdir())
        page.locator(".aam-save").first.click()
        page.locator(".aam-saved", has_text="saved").first.wait_for()
        written = set((lab[0] / "exports").iterdir()) - before
        assert {path.suffix for path in written} == {".gif", ".csv"}, "beside those of the notebook's own cell"
        with changing(page, ".aam-grid"):
            page.locator(".aam-kind select").first.select_option("random, of the pool")
        with changing(page, ".aam-grid"):
            page.locator(".aam-run select").first.select_option(ENTROPY)
        for side in ("left", "right"):
            with changing(page, f".aam-{side} .aam-grid", numbers=False):
                page.locator(f".aam-{side} .aam-sort select").select_option("Q-gap (best − second best)")


def lonely_point():
    """A point that notebook 7 shows first, far from all others: its place, in [-1, 1] each, and its numbers."""
    view = ScatterView(recorded_runs(ROOT / "data" / "sample"), "pong-bald")
    scores = view.states[["score_entropy", "score_bald"]].to_numpy(float)
    places = 2 * scores / scores.max(axis=0) - 1
    distances, _ = cKDTree(places).query(places, k=2)
    lonely = int(np.where(places.max(axis=1) < 0.9, distances[:, 1], 0).argmax())
    view.picked = (lonely,)
    return *places[lonely].tolist(), view.readout


@in_browser
def test_entropy_versus_bald(lab):
    with opened(lab, NAMES[2]) as page:
        canvas = page.locator(".aam-points canvas").first
        canvas.wait_for()
        box = canvas.bounding_box()
        corners = [(0.3, 0.1), (0.98, 0.1), (0.98, 0.98), (0.3, 0.98), (0.3, 0.12)]
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
        half, readout = box["height"] / 2, page.locator(".aam-readout").first  # the points lie in a square, amidst
        x, y, told = lonely_point()
        place, until = (box["x"] + box["width"] / 2 + x * half, box["y"] + half - y * half), time.monotonic() + 60
        while not readout.inner_text().startswith("1 of"):  # the points have no element to wait for
            assert time.monotonic() < until, "no point is where it should be"
            page.mouse.move(*place)
            page.wait_for_timeout(100)
            page.mouse.click(*place)
            page.wait_for_timeout(100)
        assert readout.inner_text() == told
        with changing(page, ".aam-motion"):
            page.mouse.move(*points[0])
            page.mouse.down()
            for point in points[1:]:
                page.mouse.move(*point, steps=12)
            page.mouse.up()
        with redrawn(page, canvas):
            page.locator(".aam-color select").select_option("expert indifferent")
        with changing(page, ".aam-motion"), redrawn(page, canvas):
            turn(page, "round", "ArrowLeft")
        with changing(page, ".aam-motion"), redrawn(page, canvas):
            page.locator(".aam-run select").select_option(ENTROPY)
        with changing(page, ".aam-motion"), redrawn(page, canvas):
            page.locator(".aam-kind select").select_option("queried by the run")
