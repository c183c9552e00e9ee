"""The models page in a real browser: a checkpoint comes in, is loaded, answers, and goes."""

import re

import pytest
from playwright.sync_api import Page, expect
from served import served, watched

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The workbench with nothing loaded yet; gives its address."""
    home = tmp_path_factory.mktemp("models-browser-home")
    caches = {name: str(home / name) for name in ("HF_HUB_CACHE", "MODELSCOPE_CACHE")}
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in caches.items():
            patch.setenv(name, folder)
        with served(home, engine="scripted", autoload="false") as address:
            yield address


@pytest.fixture
def page(browser, app):
    with watched(browser, app, "/models") as page:
        expect(page.get_by_text(re.compile(r"models? here,"))).to_be_visible()
        yield page


def keyed(page: Page, key: str):
    """The button of the widget with this key; Streamlit draws one with help twice."""
    return page.locator(f".st-key-{key} button").first


def section(page: Page, name: str):
    choice = page.get_by_role("radio", name=name, exact=True)
    choice.or_(page.get_by_role("button", name=name, exact=True)).first.click()


def main(page: Page):
    return page.get_by_test_id("stMain")


def side(page: Page):
    return page.get_by_test_id("stSidebar")


def test_a_checkpoint_is_imported_loaded_asked_and_forgotten(page, embedded_model, tmp_path):
    folder = tmp_path / "checkpoint-500"
    folder.symlink_to(embedded_model)
    page.get_by_test_id("stPopover").get_by_role("button", name=re.compile("Import")).click()
    page.get_by_role("textbox", name="Folder or GGUF file").fill(str(folder))
    page.get_by_role("textbox", name="Name").fill("reviews-v2")
    page.get_by_test_id("stFormSubmitButton").get_by_role("button", name="Import").click()
    expect(page.get_by_text("2 models here")).to_be_visible()
    expect(main(page).get_by_text("reviews-v2", exact=True)).to_be_visible()
    keyed(page, "models-load-imported-reviews-v2").click()
    expect(page).to_have_url(re.compile("model=imported"))
    section(page, "transformers")
    expect(page.get_by_text("Hugging Face's own")).to_be_visible()
    expect(main(page).get_by_text(re.compile("Longest context"))).to_be_visible()
    keyed(page, "models_load-load").click()
    expect(side(page).get_by_text("reviews-v2", exact=True)).to_be_visible(timeout=90_000)
    expect(side(page).get_by_role("button", name="Unload")).to_be_visible(timeout=90_000)
    page.get_by_role("link", name="Chat").click()
    page.get_by_placeholder("Write a message").fill("Say hello.")
    page.keyboard.press("Enter")
    expect(page.get_by_text("TTFT")).to_be_visible(timeout=60_000)
    # while an answer is written, Unload asks first
    expect(page.get_by_test_id("stBottomBlockContainer").get_by_role("button", name="Stop")).to_have_count(0)
    page.get_by_role("link", name="Models").click()
    section(page, "Library")
    expect(main(page).get_by_text("loaded", exact=True)).to_be_visible()
    side(page).get_by_role("button", name="Unload").click()
    expect(side(page).get_by_text("No model is loaded")).to_be_visible()
    expect(main(page).get_by_text("loaded", exact=True)).to_have_count(0)
    keyed(page, "models-more-imported-reviews-v2").click()
    keyed(page, "models-delete-imported-reviews-v2").click()
    keyed(page, "models-delete-imported-reviews-v2-yes").click()
    expect(page.get_by_text("1 model here")).to_be_visible()
    assert (embedded_model / "config.json").is_file()


def test_the_form_says_what_is_wrong_with_a_folder_and_stays_open(page, tmp_path):
    page.get_by_test_id("stPopover").get_by_role("button", name=re.compile("Import")).click()
    page.get_by_role("textbox", name="Folder or GGUF file").fill(str(tmp_path))
    page.get_by_test_id("stFormSubmitButton").get_by_role("button", name="Import").click()
    expect(page.get_by_text("config.json is missing")).to_be_visible()
    expect(page.get_by_role("textbox", name="Folder or GGUF file")).to_have_value(str(tmp_path))
