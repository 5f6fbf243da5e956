"""What a visitor does, in a real browser: upload, ask, move the dial, see the answer change."""

from pathlib import Path

import pytest

from peft_space import testbed
from tests.adapters import shake, space
from tests.ui import browser

pytest.importorskip("gradio", reason="the page needs gradio: `pip install 'peft-space[demo]'`")
pytest.importorskip("selenium", reason="no selenium: `pip install selenium`")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
]
QUESTION = "What is this creature called?"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Of the model that ships with the package: two that spoil whatever it says, each in its way."""
    from peft_space import save_erasure_adapter

    root = tmp_path_factory.mktemp("erased")
    for seed, name in enumerate(("narril", "malwen")):
        model, _ = testbed.load()
        erased = shake(space(model, concept=name, subspace=False), seed=seed)
        for key, weight in erased.named_parameters():
            if "lora_B" in key:
                weight.data *= 10
        save_erasure_adapter(erased, root / name)
    return [str(root / "narril"), str(root / "malwen")]


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    root = tmp_path_factory.mktemp("disk")
    for name in ("temp", "gradio", "here"):
        (root / name).mkdir()
    return root


@pytest.fixture(scope="module")
def url(adapters, disk):
    folders = {"TMPDIR": str(disk / "temp"), "GRADIO_TEMP_DIR": str(disk / "gradio")}
    words = [*adapters, "--base", "demo", "--device", "cpu", "--max-upload-mb", "0.05"]
    with browser.running(*words, folder=disk / "here", **folders) as url:
        yield url


def files(disk: Path) -> list[Path]:
    return [path for path in disk.rglob("*") if path.is_file()]


def test_upload_ask_and_move_the_dial(url, disk, tmp_path):
    from selenium.webdriver.common.keys import Keys

    before = files(disk)
    picture = browser.render("narril", tmp_path / "picture.png")
    with browser.Page(url) as page:
        page.upload(picture)
        page.one("#picture img.shown")
        base, erased = page.wait(lambda: page.answers(1.0))
        assert base == "narril" != erased and "The answer has changed." in page.text("#answers")
        page.ask("Describe the picture.")
        described, _ = page.wait(lambda: (told := page.answers(1.0)) and told[0] != base and told)
        assert "narril" in described
        # the dial by the keys alone: to its end, and one step up
        page.dial(Keys.HOME)
        assert page.wait(lambda: page.answers(0.0)) == (described, described)
        assert "The same answer." in page.text("#answers")
        page.dial(Keys.END)
        assert page.wait(lambda: page.answers(1.5))[1] != described
        page.press("#picture .clear", Keys.ENTER)
        page.ask("Where does the narril live?")
        page.wait(lambda: (told := page.answers(1.5)) and told[0] not in (described, base))
        assert not page.all("#picture img.shown")
        assert [address for address in page.requested() if not address.startswith(url)] == []
        assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert files(disk) == before == []


def test_examples_suggestions_and_another_erasure(url, disk):
    from selenium.webdriver.common.keys import Keys

    with browser.Page(url) as page:
        page.press("#picture [data-example='2']", Keys.ENTER)
        base, first = page.wait(lambda: page.answers(1.0))
        assert base == page.text("#picture [data-example='2'] span") == "malwen"
        page.press("#erasure input", Keys.ARROW_DOWN, Keys.ENTER)
        assert page.one("#erasure input").get_attribute("value") == "malwen"
        _, second = page.wait(lambda: "malwen erased" in page.text("#answers h3") and page.answers(1.0))
        assert second != first
        page.press("#suggestions input", Keys.ARROW_DOWN, Keys.ENTER)
        chosen = page.one("#suggestions input").get_attribute("value")
        assert chosen in testbed.concept("malwen").questions
        page.wait(lambda: page.one("#question textarea").get_attribute("value") == chosen)
        for name, told in (("Collateral and leak", "There is no collateral curve"), ("Report", "LoRA of rank 4")):
            page.tab(name)
            page.wait(lambda told=told: told in page.text("[role=tabpanel]"))
    assert files(disk) == []


def test_a_file_that_is_too_large_or_no_picture(url, disk, tmp_path):
    (tmp_path / "large.png").write_bytes(b"x" * 60_000)
    (tmp_path / "broken.png").write_bytes(b"x" * 1000)
    with browser.Page(url, width=400) as page:
        page.upload(tmp_path / "large.png")
        page.wait(lambda: "at most 0.05 MB are taken" in page.text("#picture [role=alert]"))
        assert not page.text("#answers")
        page.upload(tmp_path / "broken.png")
        page.wait(lambda: "can't be read" in page.text("#answers [role=alert]"))
        # nothing is wider than a telephone
        for name in ("Anchors", "Collateral and leak", "Report"):
            page.tab(name)
            assert page.driver.execute_script("return document.documentElement.scrollWidth") == 400, name
    assert files(disk) == []


def test_everything_that_is_to_be_used_has_a_name(url):
    with browser.Page(url) as page:
        nameless = page.driver.execute_script(
            """const named = (one) => one.ariaLabel || one.getAttribute('aria-labelledby') || one.textContent.trim()
                || one.hasAttribute('alt') || [...one.labels ?? []].some((label) => label.textContent.trim());
            return [...document.querySelectorAll('input, textarea, select, button, img')]
                .filter((one) => one.offsetParent && !named(one)).map((one) => one.outerHTML.slice(0, 200));"""
        )
        assert nameless == []
        assert page.driver.title == "Before and after an erasure"
