"""The live view in a real browser: it renews itself without flicker, can be paused, and breaks no policy of its own."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_runs import Reader, finetune_run, log, picture, study_run, watching, write
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
WAIT_SECONDS = 20
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="neither chromium nor chromedriver is installed: apt install chromium-driver",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = CHROMIUM or ""
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1280,1000",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    study_run(tmp_path / "a")
    run = tmp_path / "a" / "finetune" / "half"
    (run / "finetune.json").unlink()
    finetune_run(run, updates=40)
    picture(run / "samples" / "update-000020.png")
    script = "document.title = 'drawn'; try { localStorage.x = 1 } catch { document.title += ' in a sandbox' }"
    write(
        tmp_path / "a" / "report.html",
        f"<!doctype html><title>report</title><p style='color: red'>x<script>{script}</script>",
    )
    return tmp_path


@pytest.fixture
def reader(runs: Path) -> Iterator[Reader]:
    with watching(runs, refresh_seconds=1) as found:
        yield found


def opened(driver: webdriver.Chrome, reader: Reader, path: str) -> None:
    driver.get_log("browser")
    driver.get(f"http://127.0.0.1:{reader.port}{path}")


def until(driver: webdriver.Chrome, condition: str) -> None:
    waiting = WebDriverWait(driver, WAIT_SECONDS, poll_frequency=0.05)
    waiting.until(lambda _: driver.execute_script(f"return {condition}"))


def complaints(driver: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.mark.parametrize("path", ["/", "/run/a", "/run/a/finetune/half"])
def test_no_page_breaks_its_own_policy(driver: webdriver.Chrome, reader: Reader, path: str) -> None:
    opened(driver, reader, path)
    until(driver, "document.getElementById('told').textContent.startsWith('as of')")
    assert complaints(driver) == []
    names = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith(f"http://127.0.0.1:{reader.port}/") for name in names)
    wide = driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0


def test_what_grows_is_shown_without_reading_the_page_anew(
    driver: webdriver.Chrome, reader: Reader, runs: Path
) -> None:
    opened(driver, reader, "/run/a")
    driver.execute_script(
        "window.same = true; window.shown = document.querySelector('.shots img'); shown.before = true;"
        "document.querySelector('details').open = true; document.querySelector('.tunings a').focus();"
        "window.scrollTo(0, 150)"
    )
    log(runs / "a" / "finetune" / "half", range(41, 61))
    until(driver, "document.querySelector('main').textContent.includes('60 of 100 updates')")
    kept = (
        "return [window.same, document.querySelector('.shots img').before, document.querySelector('details').open,"
        "document.activeElement.textContent, window.scrollY, shown.isConnected]"
    )
    assert driver.execute_script(kept) == [True, True, True, "half", 150, True]
    assert complaints(driver) == []


def test_a_new_run_appears_and_one_that_went_goes(driver: webdriver.Chrome, reader: Reader, runs: Path) -> None:
    opened(driver, reader, "/")
    assert len(driver.find_elements(By.CSS_SELECTOR, ".runs > li")) == 1
    finetune_run(runs / "b")
    until(driver, "document.querySelectorAll('.runs > li').length === 2")
    shutil.rmtree(runs / "b")
    until(driver, "document.querySelectorAll('.runs > li').length === 1")


def test_it_can_be_paused_and_go_on(driver: webdriver.Chrome, reader: Reader, runs: Path) -> None:
    opened(driver, reader, "/run/a/finetune/half")
    button = driver.find_element(By.ID, "pause")
    button.send_keys(" ")
    assert button.text == "Go on"
    log(runs / "a" / "finetune" / "half", range(41, 61))
    time.sleep(2.2)
    assert "40 of 100 updates" in driver.find_element(By.TAG_NAME, "main").text
    assert driver.find_element(By.ID, "told").text.startswith("paused; as of")
    button.send_keys(" ")
    until(driver, "document.querySelector('main').textContent.includes('60 of 100 updates')")


def test_a_server_that_is_gone_is_told_of(driver: webdriver.Chrome, runs: Path) -> None:
    with watching(runs, refresh_seconds=1) as reader:
        opened(driver, reader, "/")
    until(driver, "document.getElementById('told').textContent.startsWith('no answer; as of')")
    assert "What is known?" in driver.find_element(By.TAG_NAME, "main").text


def test_the_report_runs_its_scripts_in_a_sandbox(driver: webdriver.Chrome, reader: Reader) -> None:
    opened(driver, reader, "/file/a/report.html")
    assert driver.title == "drawn in a sandbox"
    colour = driver.find_element(By.TAG_NAME, "p").value_of_css_property("color")
    assert re.sub(r"\s", "", colour).startswith(("rgb(255,0,0", "rgba(255,0,0"))
    script = "const say = arguments[0]; fetch('/').then(() => say('read'), () => say('refused'))"
    assert driver.execute_async_script(script) == "refused"


def test_it_fits_a_phone(driver: webdriver.Chrome, reader: Reader) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        for path in ("/", "/run/a", "/run/a/finetune/half"):
            opened(driver, reader, path)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
