"""The API page in a real browser: started, a key made, asked with OpenAI's client, counted, stopped."""

import re

import httpx
import openai
import pytest
from playwright.sync_api import Page, expect
from served import choose, served, settle, watched

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    home = tmp_path_factory.mktemp("api-browser-home")
    with served(home, engine="scripted", api_port=0) as address:
        yield address


@pytest.fixture
def page(browser, app):
    with watched(browser, app, "/api") as page:
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()
        yield page


def section(page: Page, name: str):
    settle(page)
    choice = page.get_by_role("radio", name=name, exact=True)
    choice.or_(page.get_by_role("button", name=name, exact=True)).first.click()
    settle(page)


def address(page: Page):
    return page.locator(".st-key-api-status").get_by_test_id("stCode").locator("code")


def test_the_api_is_started_asked_with_a_key_counted_and_stopped(page):
    expect(page.get_by_text("What it offers")).to_be_visible()
    choose(page, "Address", "0.0.0.0 · Every network of this machine")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(address(page)).to_be_visible()
    expect(page.get_by_text(re.compile("nobody can use it"))).to_be_visible()
    base_url = address(page).inner_text()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", base_url)
    section(page, "Keys")
    page.get_by_role("textbox", name="Name").fill("Ana's notebook")
    page.get_by_role("button", name="Make it").click()
    made = page.locator(".st-key-api-made")
    secret = made.locator("code").first.inner_text()
    assert secret.startswith("wb-")
    expect(page.get_by_text(re.compile("nobody can use it"))).to_have_count(0)
    made.get_by_role("button", name="I have copied it").click()
    expect(page.get_by_text(secret)).to_have_count(0)

    with openai.OpenAI(base_url=base_url, api_key=secret, max_retries=0) as client:
        models = [model.id for model in client.models.list()]
        with pytest.raises(openai.APIStatusError, match="needs the vLLM engine"):
            client.chat.completions.create(model=models[0], messages=[{"role": "user", "content": "Hello"}])
    headers = {"Authorization": f"Bearer {secret}"}
    answer = httpx.post(
        base_url.removesuffix("/v1") + "/generate", json={"prompt": "Hello"}, headers=headers, timeout=30
    )
    assert answer.json()["response"]
    assert httpx.get(f"{base_url}/models").status_code == 401

    section(page, "Activity")
    expect(page.get_by_text("Nobody asks right now.")).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    expect(page.get_by_text("1 × 401 no valid key")).to_be_visible()
    expect(page.get_by_text("1 × 501 engine can't")).to_be_visible()
    section(page, "Ask it")
    expect(page.get_by_text("export OPENAI_API_KEY=wb-…")).to_be_visible()

    page.reload()  # it goes on without the page, and another one finds it
    expect(address(page)).to_have_text(base_url)
    page.locator(".st-key-api-status").get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base_url}/models")
