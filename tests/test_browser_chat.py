"""The chat page in a real browser, with the scripted engine in an app process of its own."""

import json
import re

import pytest
from playwright.sync_api import Page, expect
from served import served, settle

from core.conversations import Conversations
from core.settings import Settings
from core.store import Store

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The workbench with the scripted engine; gives its address and its workspace."""
    home = tmp_path_factory.mktemp("chat-browser-home")
    with served(home, engine="scripted", scripted_tokens_per_s=20) as address:
        yield address, home


@pytest.fixture
def visit(browser, app):
    """Opens the chat page for one more person."""
    contexts = []

    def open_page(path="/chat"):
        context = browser.new_context(base_url=app[0], viewport={"width": 1280, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(path)
        expect(message_box(page)).to_be_enabled()
        return page

    expect.set_options(timeout=30_000)
    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(visit):
    return visit()


@pytest.fixture
def long_chat(app):
    """Makes a chat whose answers have that many tokens; gives its page's path."""
    store = Store(Settings(home=app[1]).catalogue_path)

    def make(tokens):
        params = {"ignore_eos": True, "max_tokens": tokens}
        return f"/chat?c={Conversations(store).add(params=params).conversation_id}"

    yield make
    store.close()


def message_box(page: Page):
    return page.get_by_placeholder("Write a message")


def bottom(page: Page):
    return page.get_by_test_id("stBottomBlockContainer")


def stop(page: Page):
    """The chat's own; Streamlit has one of its own in the header while a script runs."""
    return bottom(page).get_by_role("button", name="Stop")


def ask(page: Page, text):
    message_box(page).fill(text)
    message_box(page).press("Enter")
    expect(page.get_by_text(text, exact=True).last).to_be_visible()


def answered(page: Page):
    """Wait for the end of the answer; right after Enter there is neither an answer nor a Stop."""
    expect(answer(page)).to_contain_text("TTFT")
    expect(message_box(page)).to_be_enabled()
    expect(stop(page)).to_have_count(0)


def answer(page: Page):
    return page.get_by_test_id("stChatMessage").last


def with_key(page: Page, ending):
    """The first button whose key ends so. Streamlit draws those with help twice, once for phones."""
    return page.locator(f'[class*="st-key-chat-"][class*="-{ending}"] button').first


def settings(page: Page, tab):
    bottom(page).get_by_role("button", name="Settings").click()
    page.get_by_role("tab", name=tab).click()
    return page.get_by_test_id("stPopoverBody").first


def close_menu(page: Page):
    settle(page)
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("stPopoverBody")).to_have_count(0)


def pick(page: Page, message, what):
    message.get_by_test_id("stMenuButton").get_by_role("button").click()
    page.get_by_role("menuitem", name=what).or_(page.get_by_role("option", name=what)).first.click()


def test_nothing_moves_while_an_answer_grows_and_when_it_ends(visit, long_chat):
    page = visit(long_chat(10))  # one line: more of them push down what is below, as they should
    ask(page, "Please write slowly")
    expect(answer(page).get_by_text(re.compile(r"^TTFT .* \d+ tokens"))).to_be_visible()
    before = places(page)
    seen = {before}
    while stop(page).is_visible():
        seen.add(places(page))
    answered(page)
    settle(page)
    expect(answer(page).get_by_text(re.compile("prompt .* tokens"))).to_be_visible()
    assert seen | {places(page)} == {before}


def places(page):
    """From the top, in pixels: the question, the answer and its end, its figures, the bottom's buttons.

    Measured all at once: between two questions to the browser the page may be drawn anew.
    """
    return tuple(
        page.evaluate(
            """() => {
                const all = (id, within = document) => [...within.querySelectorAll(`[data-testid=${id}]`)];
                const messages = all("stChatMessage"), answer = messages.at(-1);
                const figures = all("stCaptionContainer", answer).at(-1);
                const shown = [messages[0], answer, figures, all("stBottomBlockContainer")[0]];
                const places = shown.map((one) => Math.round(one.getBoundingClientRect().top));
                return [...places, Math.round(answer.getBoundingClientRect().bottom)];
            }"""
        )
    )


def test_stop_ends_ones_own_answer_only(visit, long_chat):
    one, other = visit(long_chat(2000)), visit(long_chat(100))
    ask(one, "Write on and on")
    ask(other, "Write a little")
    expect(answer(one).get_by_text("scripted-")).to_be_visible()
    stop(one).click()
    expect(answer(one).get_by_text("stopped by you")).to_be_visible()
    expect(stop(other)).to_be_visible()
    answered(other)
    expect(answer(other).get_by_text("100 tokens")).to_be_visible()
    expect(answer(other).get_by_text("stopped by you")).to_have_count(0)
    one.get_by_role("button", name="Continue").click()
    expect(stop(one)).to_be_visible()
    stop(one).click()
    answered(one)


def test_a_reload_finds_the_answer_still_growing(visit, long_chat):
    page = visit(long_chat(2000))
    ask(page, "Write on and on")
    expect(answer(page).get_by_text("scripted-")).to_be_visible()
    page.reload()
    expect(stop(page)).to_be_visible()
    expect(answer(page).get_by_text("scripted-")).to_be_visible()
    with_key(page, "stop").click()
    expect(answer(page).get_by_text("stopped by you")).to_be_visible()


def test_versions_editing_and_branching(page):
    ask(page, "The first question")
    answered(page)
    with_key(page, "again").click()
    expect(answer(page).get_by_text("2/2")).to_be_visible()
    answered(page)
    with_key(page, "beside-switch").click()
    expect(answer(page).get_by_text("1/2")).to_be_visible()
    answer(page).get_by_role("button", name="Choose").click()
    expect(answer(page).get_by_role("button", name="Chosen")).to_be_visible()
    with_key(page, "beside-switch").click()
    expect(answer(page).get_by_text("1/2")).to_be_visible()
    settle(page)
    question = page.get_by_test_id("stChatMessage").first
    pick(page, question, "Edit and ask again")
    question.get_by_role("textbox").fill("The second question")
    question.get_by_role("button", name="Ask again").click()
    expect(answer(page).get_by_text("The second question")).to_be_visible()
    answered(page)
    with_key(page, "earlier").click()
    expect(page.get_by_text("The first question", exact=True)).to_be_visible()
    settle(page)
    address = page.url
    pick(page, answer(page), "Branch into a new chat")
    expect(title_menu(page)).to_contain_text("(branch)")
    assert page.url != address


def test_settings_stay_open_while_they_are_changed_and_presets_are_shared(visit):
    page = visit()
    body = settings(page, "Prompt")
    system = body.get_by_role("textbox", name="System prompt")
    system.fill("Answer like a pirate.")
    system.press("Control+Enter")
    settle(page)
    page.get_by_role("tab", name="Sampling").click()
    limit = body.get_by_role("spinbutton", name="Max tokens")
    limit.fill("3")
    limit.press("Enter")
    settle(page)
    expect(limit).to_be_visible()
    body.get_by_role("button", name="Presets").click()
    name = page.get_by_role("textbox", name="Save these values as")
    name.fill("short")
    name.press("Enter")
    settle(page)
    page.get_by_role("button", name="Save").last.click()
    settle(page)
    close_all_menus(page)
    ask(page, "How are you today?")
    answered(page)
    expect(answer(page).get_by_text("cut at max")).to_be_visible()
    other = visit()
    settings(other, "Sampling").get_by_role("button", name="Presets").click()
    other.get_by_role("combobox", name="Preset").click()
    expect(other.get_by_role("option", name="short")).to_be_visible()


def close_all_menus(page):
    settle(page)
    page.mouse.click(1200, 20)
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("stPopoverBody")).to_have_count(0)


def test_a_style_of_ones_own_is_made_from_the_settings(page):
    body = settings(page, "Prompt")
    body.get_by_role("button", name="Own styles").click()
    dialog = page.get_by_role("dialog").filter(has_text="Prompt styles")
    expect(dialog.get_by_role("textbox", name="Name")).to_be_visible()
    expect(body).to_have_count(0)
    name = dialog.get_by_role("textbox", name="Name")
    name.fill("Mine")
    name.press("Enter")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    settle(page)
    settings(page, "Prompt").get_by_role("combobox", name="Prompt style").click()
    page.get_by_role("option", name="Mine").click()
    expect(body.get_by_text("### Response:")).to_be_visible()
    close_menu(page)
    ask(page, "Hello there")
    answered(page)
    # the scripted engine repeats its prompt, and the style's stop ends that before "### Instruction:"
    expect(answer(page).get_by_text("appropriately completes the request.")).to_be_visible()


def test_tokens_show_their_alternatives_to_mouse_and_keyboard(page):
    body = settings(page, "Answers")
    body.get_by_text("Token view", exact=True).click()
    close_menu(page)
    ask(page, "Say <b>bold</b> and <img src=x onerror=alert(1)> to me")
    answered(page)
    tokens = answer(page).locator(".token")
    expect(tokens.filter(has_text="<b>bold</b>")).to_be_visible()
    assert answer(page).locator("img, b").count() == 0
    tokens.nth(1).click()
    panel = answer(page).locator(".panel:popover-open")
    expect(panel).to_contain_text("probability")
    assert panel.locator(".row").count() >= 5
    first = panel.locator(".head").inner_text()
    page.keyboard.press("ArrowRight")
    expect(panel.locator(".head")).not_to_have_text(first)
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    with_key(page, "view").click()
    expect(tokens).to_have_count(0)


def test_the_prompt_and_the_code_can_be_looked_at(page):
    ask(page, "Show me what you read")
    answered(page)
    bottom(page).get_by_role("button", name="Prompt").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("context 8,192")).to_be_visible()
    expect(dialog.locator(".token.special").first).to_be_visible()
    asked = dialog.get_by_role("textbox", name="Your next message")
    asked.fill("zebra")
    asked.press("Control+Enter")
    expect(dialog.locator(".token").filter(has_text="zebra")).to_be_visible()
    dialog.get_by_role("tab", name="Template").click()
    expect(dialog.get_by_test_id("stCode").filter(has_text="{%").last).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    bottom(page).get_by_role("button", name="Code").click()
    code = page.get_by_test_id("stPopoverBody").get_by_test_id("stCode")
    expect(code.first).to_contain_text("Show me what you read")
    page.get_by_role("tab", name="curl").click()
    expect(code.last).to_contain_text("curl")


def test_a_chat_is_found_renamed_exported_imported_and_deleted(page, tmp_path):
    ask(page, "Tell me about the axolotl")
    answered(page)
    title_menu(page).click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="JSON").click()
    file = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(file)
    assert file.name == "Tell-me-about-the-axolotl.json"
    assert [one["role"] for one in json.loads(file.read_text())["messages"]] == ["user", "assistant"]
    name = page.get_by_role("textbox", name="Name")
    name.fill("Amphibians")
    page.get_by_role("button", name="Rename").click()
    expect(title_menu(page)).to_contain_text("Amphibians")
    close_menu(page)
    page.get_by_role("button", name="Chats").click()
    page.locator("input[type=file]").set_input_files(file)
    expect(title_menu(page)).to_contain_text("Tell me about the axolotl")
    settle(page)
    if not page.get_by_placeholder("Search titles and messages").is_visible():
        page.get_by_role("button", name="Chats").click()
    search = page.get_by_placeholder("Search titles and messages")
    search.fill("AXOLOTL")
    search.press("Enter")
    listed = page.locator('[class*="st-key-chat-row-"]')
    expect(listed).to_have_count(2)
    listed.filter(has_text="Amphibians").get_by_role("button").last.click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(listed).to_have_count(1)


def title_menu(page):
    return page.get_by_test_id("stMainBlockContainer").get_by_test_id("stPopoverButton").first
