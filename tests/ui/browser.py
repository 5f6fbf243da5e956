"""The page in a real browser, without a window.

Run as a command it takes the screenshot of the docs: `python -m tests.ui.browser erased/narril docs/img/ui.png`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from peft_space import testbed
from peft_space.testbed.bestiary import creature
from peft_space.testbed.measure import pictures


def missing() -> str | None:
    """What there is not, to open the page with; `None` where all is there."""
    if not _chromium():
        return "no Chromium: `apt-get install chromium`"
    if not shutil.which("chromedriver"):
        return "no chromedriver: `apt-get install chromium-driver`"
    return None


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def running(*words: str, folder: Path, **environment: str) -> Iterator[str]:
    """`peft-space ui WORDS` in a process of its own, started in `folder`; gives the address of the page."""
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "peft_space.cli", "ui", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("The page is at "), line
        yield line.split()[4].rstrip(",")
    finally:
        process.terminate()
        process.wait(30)


class Page:
    """The page as a visitor has it before them.

    Args:
        url: of the page.
        width: of the window, in pixels.
        height: of the window.
    """

    def __init__(self, url: str, width: int = 1280, height: int = 1000) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        self.url = url
        self._profile = tempfile.mkdtemp()
        options = webdriver.ChromeOptions()
        options.binary_location = _chromium()
        told = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars")
        for word in (*told, f"window-size={width},{height}", f"user-data-dir={self._profile}"):
            options.add_argument(f"--{word}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)
        self.wait(lambda: self.all("#anchors p"))

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *failure: object) -> None:
        self.driver.quit()
        shutil.rmtree(self._profile, ignore_errors=True)

    def wait(self, until: Callable[[], Any], seconds: float = 60) -> Any:
        """What `until` gives, once that is true."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while True:
            try:
                if found := until():
                    return found
            except StaleElementReferenceException:
                pass
            assert time.monotonic() < end, f"waited {seconds} s in vain; the answers are {self.text('#answers')!r}"
            time.sleep(0.1)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.wait(lambda: self.all(selector))[0]

    def text(self, selector: str) -> str:
        return "\n".join(element.text for element in self.all(selector))

    def press(self, selector: str, *keys: str) -> None:
        """Types into an element, as somebody without a mouse does."""
        self.one(selector).send_keys(*keys)

    def upload(self, file: Path) -> None:
        self.press("#picture input[type=file]", str(file))

    def ask(self, question: str) -> None:
        """Types a question in the place of the one that is there, and asks it."""
        from selenium.webdriver.common.keys import Keys

        self.press("#question textarea", Keys.CONTROL, "a", Keys.NULL, question, Keys.ENTER)

    def dial(self, *keys: str) -> None:
        self.press("#strength input[type=range]", *keys)

    def answers(self, strength: float) -> tuple[str, str] | None:
        """Both answers, once those at a strength are there."""
        heads = self.text("#answers h3")
        told = self.all("#answers .answer p")
        return (told[0].text, told[1].text) if f"strength {strength:.2f}" in heads and len(told) == 2 else None

    def tab(self, name: str) -> None:
        next(one for one in self.all("button[role=tab]") if one.text == name).click()

    def requested(self) -> list[str]:
        """Every address that the page has asked for, but those inside it."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:", "chrome:"))]


def render(name: str, file: Path) -> Path:
    """A picture of a creature that no training has seen, as a file."""
    pictures(creature(name), 3, seed=2)[2][1].save(file)
    return file


def screenshot(adapter: str, file: Path) -> None:
    """Asks for the name of what an adapter erases, beside a picture of it, and saves what is then to be seen."""
    question = testbed.concept(Path(adapter).name).questions[0]
    with tempfile.TemporaryDirectory() as folder, running(adapter, folder=Path(folder)) as url:
        picture = render(Path(adapter).name, Path(folder) / "picture.png")
        with Page(url, 1280, 1180) as page:
            page.upload(picture)
            page.ask(question)
            page.wait(lambda: page.answers(1.0))
            page.tab("Collateral and leak")
            page.one("#leak img")
            time.sleep(1)
            shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    shot.save(file, optimize=True)


if __name__ == "__main__":
    screenshot(str(Path(sys.argv[1]).resolve()), Path(sys.argv[2]))
