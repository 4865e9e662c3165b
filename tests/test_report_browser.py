"""The page of `h2osim report` in a browser: Debian's Chromium without a screen.

Long, and left out where there is no Chromium or no Selenium.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report_page import HOSTILE, hostile
from trace_cases import random_trace

from h2osim import cli

pytest.importorskip("selenium", reason="needs selenium")
pytest.importorskip("vl_convert", reason="needs vl-convert-python")

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
]
PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    hostile(40).save(folder / "one")
    random_trace(30, 2, 4, 3, group_size=2, name="plain").save(folder / "two")
    words = [str(folder / "one"), str(folder / "two"), "-o", str(folder / "r.html"), "-b", "4,9"]
    assert cli.run(["report", *words]) == 0
    return folder / "r.html"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(word)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield made
    made.quit()


def opened(driver: Any, path: Path, size: tuple[int, int] = DESK, scheme: str = "light") -> Any:
    """The page from disk, once it is drawn."""
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = {"features": [{"name": name, "value": value} for name, value in wishes.items()]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.get_log("browser")
    driver.get(path.as_uri())
    end = time.monotonic() + 60
    while not driver.execute_script("return document.body.dataset.ready"):
        assert time.monotonic() < end, driver.get_log("browser")
        time.sleep(0.1)
    while len(driver.find_elements("css selector", ".plot svg")) < 4:
        assert time.monotonic() < end, driver.get_log("browser")
        time.sleep(0.1)
    return driver


def detail(driver: Any) -> str:
    return driver.find_element("id", "detail").text


def chosen(driver: Any) -> int:
    (one,) = driver.find_elements("css selector", '#text [aria-selected="true"]')
    return int(one.get_attribute("data-at"))


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_without_an_error(
    driver: Any, path: Path, size: tuple[int, int], scheme: str
) -> None:
    opened(driver, path, size, scheme)
    assert driver.get_log("browser") == []
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= size[0]  # nothing sticks out; wide tables scroll by themselves
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")


def test_nothing_is_loaded(driver: Any, path: Path) -> None:
    driver.get_log("performance")
    opened(driver, path)
    asked = [entry["message"] for entry in driver.get_log("performance")]
    sent = [one for one in asked if "Network.requestWillBeSent" in one]
    assert sent and all(path.name in one or '"url":"data:' in one or "blob:" in one for one in sent)


def test_a_click_and_the_keyboard_choose_tokens(driver: Any, path: Path) -> None:
    opened(driver, path)
    driver.find_element("id", "tk7").click()
    assert chosen(driver) == 7 and "is token 7" in detail(driver)
    text = driver.find_element("id", "text")
    text.send_keys(Keys.ARROW_RIGHT)
    assert chosen(driver) == 8
    text.send_keys(Keys.HOME)
    assert chosen(driver) == 0
    text.send_keys(Keys.END)
    assert chosen(driver) == 39 and text.get_attribute("aria-activedescendant") == "tk39"
    for name in ("h2o", "streaming", "tova", "offline optimum"):
        assert name in detail(driver)


def test_the_raster_answers_too(driver: Any, path: Path) -> None:
    opened(driver, path)
    raster = driver.find_element("id", "raster")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", raster)
    ActionChains(driver).move_to_element_with_offset(raster, 0, 40).click().perform()
    assert chosen(driver) in (19, 20)  # the middle of 40
    middle = chosen(driver)
    step = driver.find_element("id", "step")
    before = int(step.get_attribute("value"))
    assert 20 < before < 30
    raster.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_DOWN)
    assert chosen(driver) == middle - 2 and int(step.get_attribute("value")) == before + 1
    assert f"token {middle - 2}," in raster.get_attribute("aria-label")


def test_a_costly_eviction_is_three_clicks_away(driver: Any, path: Path) -> None:
    """Which token was lost, who lost it, and in which unit it was missed."""
    opened(driver, path)
    driver.find_element("css selector", "#costly button").click()
    assert "the costliest of 40 tokens" in detail(driver)
    driver.find_element("css selector", "#detail button").click()
    assert driver.find_element("id", "layer").get_attribute("value") != "all"
    assert "after step" in detail(driver)


def test_tokens_are_shown_as_they_are(driver: Any, path: Path) -> None:
    opened(driver, path)
    for j, word in enumerate(HOSTILE):
        shown = driver.execute_script(f"return document.getElementById('tk{j}').textContent")
        assert shown == word.replace("\n", "⏎\n")


def test_another_text_may_be_chosen(driver: Any, path: Path) -> None:
    opened(driver, path)
    driver.execute_script(
        "const s = document.getElementById('trace'); s.value = 1;"
        "s.dispatchEvent(new Event('change'))"
    )
    end = time.monotonic() + 20
    while len(driver.find_elements("css selector", "#text .tk")) != 30:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert driver.find_element("id", "tk3").text.strip() == "⟨3⟩"  # it has no texts
    assert driver.get_log("browser") == []


def test_every_control_has_a_name(driver: Any, path: Path) -> None:
    opened(driver, path)
    nameless = driver.execute_script(
        "return [...document.querySelectorAll('select, input, button, canvas, [role], svg')]"
        ".filter(e => !e.closest('label') && !e.getAttribute('aria-label')"
        " && !e.getAttribute('aria-labelledby') && !e.textContent.trim()).map(e => e.outerHTML)"
    )
    assert [one for one in nameless if 'role="graphics' not in one and "viewBox" not in one] == []


def test_files_can_be_taken_from_the_page(driver: Any, path: Path, tmp_path: Path) -> None:
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    opened(driver, path)
    buttons = driver.find_elements("css selector", "#downloads button")
    names = [one.text for one in buttons]
    assert names == ["policies.csv", "optimum.csv", "tokens-in-view.csv", "page-data.json"]
    for one in buttons:
        driver.execute_script("arguments[0].click()", one)
    end = time.monotonic() + 20
    while {one.name for one in tmp_path.iterdir()} != set(names):
        assert time.monotonic() < end
        time.sleep(0.1)
    head = (tmp_path / "tokens-in-view.csv").read_text(encoding="utf-8").split("\n", 1)[0]
    assert head == "token,text,layer,unit,budget,schedule,evicted_at,lost"
