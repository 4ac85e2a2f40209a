"""A headless Chromium of Debian's, with its driver. Nothing is fetched for it, and it asks no network but loopback."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    StaleElementReferenceException,
)
from selenium.webdriver.chrome.service import Service


@contextmanager
def chromium(width: int, height: int, scheme: Literal["light", "dark"] = "light") -> Iterator[webdriver.Chrome]:
    """A browser whose pages are `width` × `height` CSS pixels and prefer a light or a dark colour scheme."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise FileNotFoundError("no chromium with chromedriver on this machine: run tests/install_browser.sh")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",  # root has none
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    window = webdriver.Chrome(options=options, service=Service(driver))  # a given driver: selenium looks for none
    try:
        resize(window, width, height)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        yield window
    finally:
        window.quit()


def without_mlflow_assistant(window: webdriver.Chrome) -> None:
    """It opens by itself on a first visit, and covers a third of the page."""
    never = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    window.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": never})


def resize(window: webdriver.Chrome, width: int, height: int) -> None:
    """Gives the page a size in CSS pixels: of its own, for a window has a least width and a frame."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def wait_for_script(window: webdriver.Chrome, script: str, *arguments: object, seconds: float = 60) -> Any:
    """What the script's expression gives, once it is neither null, false, 0 nor empty; an error in it means not yet."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if last := window.execute_script(f"return {script}", *arguments):
                return last
        except JavascriptException as error:
            last = error.msg
        time.sleep(0.1)
    shown = window.execute_script("return document.body.innerText.slice(0, 2000)")
    raise AssertionError(f"{script}: {last!r} after {seconds} s on {window.current_url}: {shown}")


def click(window: webdriver.Chrome, script: str, *arguments: object, seconds: float = 60) -> None:
    """Clicks on the element that the script's expression gives, once it is there and can be clicked on."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            wait_for_script(window, script, *arguments, seconds=seconds).click()
            return
        except (ElementNotInteractableException, ElementClickInterceptedException, StaleElementReferenceException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def errors(window: webdriver.Chrome) -> list[str]:
    """What the console has got as errors since it was last asked, script errors among them."""
    log: list[dict[str, Any]] = window.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


def screenshot(window: webdriver.Chrome, name: str, folder: Path) -> None:
    """What the window shows, as `name`.png in the folder; in that of the variable SCREENSHOTS where it is set."""
    folder = Path(os.environ.get("SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    assert window.save_screenshot(str(folder / f"{name}.png"))
