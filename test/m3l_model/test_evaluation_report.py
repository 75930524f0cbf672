# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation, opened in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from headless_chromium import Page, headless_page, missing_program

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_writer import BagWriter
from m3l_model.checkpoint import Metadata, save_checkpoint
from m3l_model.evaluation import evaluate
from m3l_model.evaluation_files import describe
from m3l_model.evaluation_pictures import PictureMaker, choose_frames
from m3l_model.evaluation_plan import evaluated_positions, plan_evaluation
from m3l_model.evaluation_report import write_report
from m3l_model.evaluation_store import MemoryStore
from m3l_model.evaluation_summary import Summary, summarise
from m3l_model.labels import LabelSet
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import Preprocessing
from m3l_model.scenarios import chosen_scenarios
from m3l_model.segmenter import LinearFusionSegmenter

LABELS = LabelSet.load("demo")
NAMES = ("one", "<b>other</b>")
FRAMES = 14
PHONE = (390, 844)
LATER = "await new Promise(done => setTimeout(done, 50));"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """Of two models on a labelled bag, one of them with a name that is to be escaped."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    with BagWriter(folder / "drive") as writer:
        for index in range(FRAMES):
            rgb = rng.integers(0, 255, (32, 48, 3), np.uint8)
            truth = np.repeat(rng.integers(0, 8, (4, 48), np.uint8), 8, 0)
            stamp = 1_700_000_000_000_000_000 + index * 1_000_000_000
            writer.write_frame(
                stamp, "camera", rgb, rng.integers(500, 5000, (32, 48), np.uint16), truth, np.eye(3)
            )
    predictors, checkpoints = {}, {}
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        model = LinearFusionSegmenter("mit_b0", len(LABELS.classes)).eval()
        model.metadata = Metadata(LABELS, Preprocessing(short_side=32))
        checkpoints[name] = folder / f"model_{seed}.safetensors"
        save_checkpoint(checkpoints[name], model)
        predictors[name] = Predictor(model, "cpu", "fp32")
    dataset = RgbdBagDataset([folder / "drive"], LABELS)
    scenarios = chosen_scenarios(["depth_bursts_50", "rgb_dark"])
    plan = plan_evaluation(dataset, evaluated_positions(dataset), scenarios)
    store = MemoryStore()
    evaluation = evaluate(plan, predictors, store, PictureMaker(*choose_frames(plan, len(NAMES))))
    summary = summarise(evaluation)
    facts = describe(plan, predictors, checkpoints)
    write_report(folder / "index.html", evaluation, summary, facts, "m3l eval --bag 'a b'", store, predictors)
    return folder / "index.html", summary


def test_names_are_escaped(report: tuple[Path, Summary]) -> None:
    assert "<b>other</b>" not in report[0].read_text()


def test_with_few_blocks_no_intervals_are_spoken_of(report: tuple[Path, Summary]) -> None:
    text = report[0].read_text()
    assert "No confidence intervals: they need" in text
    assert "Depth comes and goes in bursts." in text
    assert "resamples" not in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """A headless Chromium."""
    missing = missing_program()
    if missing:
        pytest.skip(f"needs {missing}")
    with headless_page() as page:
        yield page


@pytest.fixture
def page(browser: Page, report: tuple[Path, Summary]) -> Iterator[Page]:
    """The report on a desk; whatever a test does, nothing may go wrong in the page."""
    browser.open(report[0], 1280, 900)
    yield browser
    assert browser.console_errors() == []


def test_nothing_is_fetched(page: Page) -> None:
    page.run("document.getElementById('later').click();" + LATER)
    fetched = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


def test_the_headline_is_that_of_the_summary(page: Page, report: tuple[Path, Summary]) -> None:
    cells = page.run("return [...document.querySelectorAll('tr.first td')].map(cell => cell.textContent)")
    figures = [model.headline["robust"] for model in report[1].models.values()]
    assert [cell.split()[0] for cell in cells[:2]] == [f"{100 * figure.value:.1f}" for figure in figures]
    heads = page.run(
        "return [...document.querySelectorAll('table')[0].tHead.rows[0].cells].map(c => c.innerText.trim())"
    )
    assert heads == ["figure", *NAMES, f"{NAMES[1]} − {NAMES[0]}"]


def test_scrubbing_shows_the_frame(page: Page) -> None:
    def scrub(frame: int) -> tuple[str, list[list[int]]]:
        page.run(
            f"const s = document.getElementById('scrub'); s.value = {frame}; s.dispatchEvent(new Event('input'));"
            f"while (document.body.dataset.shown != '{frame}') {{ {LATER} }}"
        )
        pixels = page.run(
            "return ['colour', 'depth', 'mask', 'truth', 'error'].map(name => {"
            "const c = document.getElementById('panel-' + name);"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })"
        )
        return page.run("return document.getElementById('now').textContent"), pixels

    text, first = scrub(0)
    assert text.startswith(f"Frame 1 of {FRAMES}, drive at 0.0 s (stamp 1700000000000000000): paired; ")
    text, other = scrub(5)
    assert text.startswith(f"Frame 6 of {FRAMES}, drive at 5.0 s")
    assert all(one != another for one, another in zip(first, other, strict=True))
    mask, truth, error = (np.array(panel).reshape(-1, 4)[:, :3] for panel in other[2:])
    wrong = (mask != truth).any(1)
    assert (error[wrong] == (215, 38, 61)).all()
    assert (error[~wrong] == (207, 232, 216)).all()
    share = float(re.findall(r"([\d.]+) % of pixels right", text)[0]) / 100
    assert 1 - wrong.mean() == pytest.approx(share, abs=0.001)


def test_another_scenario_shows_what_it_does(page: Page) -> None:
    page.run(
        "const s = document.getElementById('scenario');"
        "s.value = [...s.options].find(o => o.text === 'depth_missing').value; s.dispatchEvent(new Event('change'));"
        + LATER
        * 4
    )
    assert "depth_lost" in page.run("return document.getElementById('now').textContent")
    assert page.run("return document.getElementById('note-depth').textContent") == "none"
    page.run(
        "const s = document.getElementById('scenario');"
        "s.value = [...s.options].find(o => o.text === 'rgb_missing').value; s.dispatchEvent(new Event('change'));"
        + LATER
        * 4
    )
    assert page.run("return document.getElementById('note-colour').textContent") == "withheld"


def test_sorting_orders_the_rows_and_says_so(page: Page) -> None:
    script = (
        "const th = [...document.querySelectorAll('#class-table thead th')][1]; th.querySelector('button').click();"
        "return [th.ariaSort, ...[...document.querySelectorAll('#class-table tbody tr')]"
        ".map(row => +row.children[1].dataset.key)]"
    )
    for order, reverse in (("ascending", False), ("descending", True)):
        said, *keys = page.run(script)
        assert said == order
        assert keys == sorted(keys, reverse=reverse)
        assert len(set(keys)) > 1


def test_the_worst_frame_is_a_click_away(page: Page) -> None:
    page.run("document.querySelector('#worst-table button.show').click();" + LATER)
    shown, right = page.run(
        "const row = document.querySelector('#worst-table tbody tr');"
        "return [document.getElementById('now').textContent, row.children[2].textContent]"
    )
    assert f"{right} % of pixels right" in shown
    rows = page.run(
        "return [...document.querySelectorAll('#worst-table tbody tr')].map(r => +r.children[2].textContent)"
    )
    assert rows == sorted(rows)


def test_it_can_be_used_by_keyboard_and_screen_reader(page: Page) -> None:
    problems = page.run(
        "const named = e => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length;"
        "return [...document.querySelectorAll('button, input, select, [role=img], [role=region], table')]"
        ".filter(e => !(named(e) || document.getElementById(e.getAttribute('aria-labelledby'))))"
        ".map(e => e.outerHTML.slice(0, 100))"
    )
    assert problems == []
    assert page.run("return document.documentElement.lang") == "en"
    levels = page.run("return [...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.run("return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)")


def test_it_fits_on_a_phone(page: Page, report: tuple[Path, Summary], tmp_path: Path) -> None:
    page.open(report[0], *PHONE, phone=True)
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    targets = page.run(
        "return [...document.querySelectorAll('select, button.plain, input')]"
        ".map(e => e.getBoundingClientRect().height)"
    )
    assert min(targets) >= 32
    page.screenshot(tmp_path / "phone.png")
    shot = cv2.imread(str(tmp_path / "phone.png"))
    assert shot is not None
    assert shot.shape[:2] == (2 * PHONE[1], 2 * PHONE[0])
