"""The chat page, run as Streamlit runs it, with the scripted engine."""

import json
import time

import pytest
from apps import HOME, button, opened, until
from streamlit.testing.v1 import AppTest

from core import transcripts
from core.conversations import ChatOptions
from core.types import Message
from pages.parts import session
from pages.parts.chat_messages import differences


@pytest.fixture
def app(workspace):
    return opened("chat")


def conversation_id(app):
    return app.query_params["c"]


def ended(app):
    until(app, lambda: not session.chats().live(conversation_id(app)))


def send(app, text):
    app.chat_input[0].set_value(text).run()
    assert not app.exception
    ended(app)


def thread(app):
    return session.chats().conversations.thread(conversation_id(app))


def last(app):
    return thread(app)[-1].message


def words(app):
    """All Markdown, text and captions of the page, for looking up what it says."""
    return "\n".join(element.value for element in [*app.markdown, *app.text, *app.caption])


def title(app):
    return next(
        block.proto.popover.label for block in app.get("popover") if block.proto.id.endswith("chat:title")
    )


def choose(app, message, what):
    """Pick from the menu of a message."""
    app.menu_button(key=f"chat:{message.message_id}:menu").click(what).run()
    assert not app.exception


def set_up(app, **values):
    """Enter settings by the last part of their keys."""
    shown = app.query_params.get("c", "new")
    for name, value in values.items():
        key = f"chat:{shown}:{name}"
        next(widget for widget in widgets(app) if widget.key == key).set_value(value)
    app.run()
    assert not app.exception


def widgets(app):
    return [
        *app.text_area,
        *app.text_input,
        *app.number_input,
        *app.slider,
        *app.selectbox,
        *app.toggle,
    ]


@pytest.fixture
def slow(app, monkeypatch):
    """The engine takes its time until this is called."""
    engine = session.runtime().engine
    monkeypatch.setattr(engine, "_seconds_per_token", 0.05)
    return lambda: monkeypatch.setattr(engine, "_seconds_per_token", 0.0)


# -- asking ---------------------------------------------------------------------


def test_a_chat_of_two_turns_with_its_figures(app):
    send(app, "Hello there")
    assert [message.name for message in app.chat_message] == ["user", "assistant"]
    assert app.chat_message[0].text[0].value == "Hello there"
    assert "scripted-" in app.chat_message[1].markdown[0].value
    figures = app.chat_message[1].caption[0].value
    assert "TTFT" in figures and "tokens/s" in figures and "prompt" in figures
    assert title(app) == "**Hello there**"
    send(app, "And again")
    assert len(app.chat_message) == 4


def test_an_example_starts_a_chat(app):
    button(app, "Explain what a KV cache is in three sentences.").click().run()
    assert not app.exception
    assert app.chat_message[0].text[0].value.startswith("Explain what")


def test_a_page_switch_and_a_refresh_lose_nothing(app):
    send(app, "Remember me")
    conversation = conversation_id(app)
    app.switch_page("pages/home.py").run()
    app.switch_page("pages/chat.py").run()
    assert app.chat_message[0].text[0].value == "Remember me"
    refreshed = AppTest.from_file(HOME, default_timeout=30).run()
    refreshed.switch_page("pages/chat.py")
    refreshed.query_params["c"] = conversation
    refreshed.run()
    assert refreshed.chat_message[0].text[0].value == "Remember me"


def test_stop_continue_and_answer_again(app, slow):
    app.chat_input[0].set_value("Take your time, please, with this long question of mine").run()
    assert app.chat_input[0].disabled
    until(app, lambda: any(live.text for live in session.chats().live(conversation_id(app)).values()))
    button(app, "Stop").click().run()
    ended(app)
    assert "stopped by you" in words(app) and not app.chat_input[0].disabled
    stopped = last(app)
    slow()
    app.button(key=f"chat:{stopped.message_id}:go-on").click().run()
    ended(app)
    assert last(app).message_id == stopped.message_id and "stopped by you" not in words(app)
    assert last(app).content.startswith(stopped.content) and len(last(app).content) > len(stopped.content)
    app.button(key=f"chat:{stopped.message_id}:again").click().run()
    ended(app)
    assert len(app.chat_message) == 2 and "2/2" in words(app)


def test_an_error_is_shown_under_its_question(app):
    send(app, "word " * 9000)
    assert "too long" in app.chat_message[1].error[0].value


def test_model_output_is_never_a_picture(app):
    send(app, "say ![x](http://example.com/x.png)")
    assert "![" not in app.chat_message[1].markdown[0].value


def test_a_deleted_conversation_in_the_address_is_a_new_chat(app):
    app.query_params["c"] = "20200101-000000-abcdef"
    app.run()
    assert not app.exception and not app.chat_message


def test_what_the_model_thought_is_folded_away(app):
    made = session.chats().create()
    kept = session.chats().conversations
    send_to(app, made.conversation_id, "Think first")
    kept.update_message(last(app).message_id, content="<think>\nHm, two.\n</think>\n\nTwo.")
    app.run()
    answer = app.chat_message[1]
    assert answer.expander[0].label == "Thoughts" and "Hm, two." in answer.expander[0].markdown[0].value
    assert not answer.expander[0].proto.expanded
    assert answer.markdown[-1].value == "Two."
    set_up(app, reasoning="none")
    assert not app.chat_message[1].expander and "<think>" in app.chat_message[1].markdown[0].value


def send_to(app, conversation, text):
    app.query_params["c"] = conversation
    app.run()
    send(app, text)


# -- settings -------------------------------------------------------------------


def test_settings_belong_to_the_conversation(app):
    set_up(app, system="Be brief.", max_tokens=2, temperature=0.25, style="ChatML", n=2)
    send(app, "one two three four five")
    kept = session.chats().conversations.get(conversation_id(app))
    assert kept.system == "Be brief." and kept.params["temperature"] == 0.25
    assert kept.options == ChatOptions(style="ChatML", n=2)
    assert len(thread(app)[-1].versions) == 2 and "cut at max" in words(app)
    set_up(app, temperature=0.5, system="Be long.")
    app.switch_page("pages/home.py").run()
    app.switch_page("pages/chat.py").run()
    kept = session.chats().conversations.get(conversation_id(app))
    assert kept.params["temperature"] == 0.5 and kept.params["max_tokens"] == 2 and kept.system == "Be long."
    assert app.slider(key=f"chat:{conversation_id(app)}:temperature").value == 0.5
    assert app.text_area(key=f"chat:{conversation_id(app)}:system").value == "Be long."


def test_opening_a_chat_does_not_change_it(app):
    made = session.chats().create("Be kind.", {"temperature": 0.3})
    app.query_params["c"] = made.conversation_id
    app.run().run()
    assert session.chats().conversations.get(made.conversation_id) == made


def test_what_another_tab_changed_is_taken_over(app):
    send(app, "hello")
    session.chats().conversations.update(
        conversation_id(app), system="From elsewhere.", params={"temperature": 0.1}, options=ChatOptions(n=3)
    )
    app.run()
    assert app.text_area(key=f"chat:{conversation_id(app)}:system").value == "From elsewhere."
    assert app.slider(key=f"chat:{conversation_id(app)}:temperature").value == 0.1
    assert app.number_input(key=f"chat:{conversation_id(app)}:n").value == 3
    kept = session.chats().conversations.get(conversation_id(app))
    assert (kept.system, kept.options.n) == ("From elsewhere.", 3)


def test_template_options_must_be_an_object(app):
    set_up(app, template_options="[1]")
    assert "JSON object" in app.error[0].value
    set_up(app, template_options='{"enable_thinking": false}')
    send(app, "hello")
    kept = session.chats().conversations.get(conversation_id(app))
    assert not app.error and kept.options.template_options == {"enable_thinking": False}


def editor_of_styles():
    from pages.parts import chat_styles

    chat_styles.edit()


def test_a_style_of_ones_own_is_made_changed_and_deleted(workspace):
    page = AppTest.from_function(editor_of_styles, default_timeout=30).run()
    page.selectbox(key="chat:style:chosen").set_value("Copy of Alpaca").run()
    question = page.text_area(key="chat:style:Copy of Alpaca:Around your message")
    question.set_value("Q: nothing")
    page.text_input(key="chat:style:Copy of Alpaca:name").set_value("Mine").run()
    assert "content" in page.error[0].value and not page.button
    question.set_value("Q: {content}\n").run()
    page.text_area(key="chat:style:Copy of Alpaca:Stop at").set_value("END\n\\nQ:").run()
    assert "Q: (message)" in page.code[0].value
    button(page, "Save").click().run()
    made = session.wrappers().find("Mine")
    assert made.user == "Q: {content}\n" and made.stop == ("END", "\nQ:")
    page.selectbox(key="chat:style:chosen").set_value("Mine").run()
    assert page.text_area(key="chat:style:Mine:Stop at").value == "END\n\\nQ:"
    button(page, "Delete").click().run()
    assert [one.name for one in session.wrappers().list()] == ["Alpaca", "ChatML"]


def test_a_shipped_style_cannot_be_written_over(workspace):
    page = AppTest.from_function(editor_of_styles, default_timeout=30).run()
    page.text_input(key="chat:style:New style:name").set_value("chatml").run()
    button(page, "Save").click().run()
    assert "stays as it is" in page.error[0].value


def test_a_deleted_style_is_named(app):
    made = session.chats().create(options=ChatOptions(style="Gone"))
    app.query_params["c"] = made.conversation_id
    app.run()
    app.chat_input[0].set_value("hello").run()
    assert any("Gone was deleted" in error.value for error in app.error)
    assert any("no prompt style" in error.value for error in app.error)
    assert not app.chat_message and any(block.value == "hello" for block in app.code)


# -- versions -------------------------------------------------------------------


def test_a_question_is_edited_and_both_versions_stay(app):
    send(app, "First words")
    choose(app, thread(app)[0].message, "edit")
    app.text_area(key=f"chat:edit:{thread(app)[0].message.message_id}:text").set_value("Other words")
    button(app, "Ask again").click().run()
    ended(app)
    assert app.chat_message[0].text[0].value == "Other words" and "Other" in last(app).content
    assert "2/2" in words(app)
    app.button(key=f"chat:{thread(app)[0].message.message_id}:earlier").click().run()
    assert app.chat_message[0].text[0].value == "First words" and "1/2" in words(app)


def test_an_edit_can_be_given_up(app):
    send(app, "First words")
    choose(app, thread(app)[0].message, "edit")
    button(app, "Cancel").click().run()
    assert app.chat_message[0].text[0].value == "First words" and "2/2" not in words(app)


def test_an_answer_is_edited(app):
    send(app, "hello")
    choose(app, last(app), "edit")
    app.text_area(key=f"chat:edit:{last(app).message_id}:text").set_value("What I would say")
    button(app, "Save").click().run()
    assert last(app).content == "What I would say" and "edited by you" in words(app)


def test_several_answers_lie_side_by_side_and_one_is_chosen(app):
    set_up(app, n=3)
    send(app, "hello")
    ids = thread(app)[-1].versions
    assert len(ids) == 3 and all(place in words(app) for place in ("**1/3**", "**2/3**", "**3/3**"))
    app.button(key=f"chat:{ids[2]}:choose").click().run()
    assert last(app).message_id == ids[2]
    app.button(key=f"chat:{conversation_id(app)}:beside:switch").click().run()
    assert "3/3" in words(app) and "**1/3**" not in words(app)


def test_versions_say_in_which_parameters_they_differ(app):
    set_up(app, temperature=0.25)
    send(app, "hello")
    set_up(app, temperature=0.75)
    app.button(key=f"chat:{last(app).message_id}:again").click().run()
    ended(app)
    app.button(key=f"chat:{conversation_id(app)}:beside:switch").click().run()
    assert "**1/2** · temperature 0.25" in words(app) and "**2/2** · temperature 0.75" in words(app)


def test_differences_leave_out_what_is_the_same_and_what_is_not_set():
    sets = [{"temperature": 0.2, "top_p": 1.0}, {"temperature": 0.2, "top_p": 0.9, "seed": 7}]
    assert differences(sets) == ["top_p 1.0", "top_p 0.9 · seed 7"]


def test_a_branch_is_a_chat_of_its_own(app):
    send(app, "one")
    send(app, "two")
    first = conversation_id(app)
    choose(app, thread(app)[1].message, "branch")
    assert conversation_id(app) != first and len(app.chat_message) == 2
    assert len(session.chats().conversations.thread(first)) == 4


def test_a_long_chat_shows_its_newest_messages_first(app):
    made = session.chats().create()
    send_to(app, made.conversation_id, "hello")
    for number in range(20):
        session.chats().send(made.conversation_id, f"number {number}", {"max_tokens": 1})
        until_idle(made.conversation_id)
    app.run()
    assert len(app.chat_message) == 30 and app.chat_message[0].text[0].value == "number 5"
    button(app, "Show 12 earlier messages").click().run()
    assert len(app.chat_message) == 42


def until_idle(conversation):
    end = time.monotonic() + 30
    while session.chats().live(conversation):
        assert time.monotonic() < end
        time.sleep(0.005)


# -- looking closer -------------------------------------------------------------


def test_tokens_are_kept_and_shown_when_they_are_wanted(app):
    set_up(app, token_view=True)
    set_up(app, top_logprobs=2)
    send(app, "hello")
    tokens = last(app).details["logprobs"]
    assert len(tokens) > 1 and len(tokens[0][4]) == 2
    drawn = component(app)
    assert [token[0] for token in drawn["tokens"]] == [token[1] for token in tokens]
    app.button(key=f"chat:{last(app).message_id}:view").click().run()
    assert component(app) is None and last(app).content in app.chat_message[1].markdown[0].value


def component(app):
    """What the token view draws, without the one that is only the legend."""
    sent = [json.loads(element.proto.json) for element in app.get("bidi_component")]
    return next((data for data in sent if data["tokens"]), None)


def test_the_inspector_shows_the_prompt_with_its_special_tokens(app):
    set_up(app, system="Be brief.")
    send(app, "hello")
    button(app, "Prompt").click().run()
    tokens = component(app)["tokens"]
    text = "".join(token[0] for token in tokens)
    assert "Be brief." in text and "hello" in text and any(token[5] for token in tokens)
    assert any("context 8,192" in bar.proto.text for bar in app.get("progress"))
    app.session_state["chat:inspect:asked"] = "Is this so?"
    button(app, "Prompt").click().run()
    text = "".join(token[0] for token in component(app)["tokens"])
    assert "Is this so?" in text and last(app).content in text
    assert any("Be brief." in block.value for block in app.code)


def test_the_inspector_names_what_was_dropped(app):
    send(app, "old " * 5000)
    send(app, "new " * 5000)
    button(app, "Prompt").click().run()
    assert any("oldest message" in one.label for one in app.expander)
    assert "oldest message" in words(app)


def test_the_code_asks_the_same(app):
    set_up(app, temperature=0.25)
    send(app, "hello there")
    app.session_state["chat:code"] = True
    app.run()
    assert not app.exception
    python, curl = (block.value for block in app.code[-2:])
    assert "hello there" in python and "temperature=0.25" in python and "openai" in python.lower()
    assert curl.startswith("curl") and "hello there" in curl and "scripted-" not in curl
    set_up(app, style="Alpaca", n=2)
    python, curl = (block.value for block in app.code[-2:])
    assert "### Response:" in python and "### Instruction:" in python and "n=2" in python
    assert "/v1/completions" in curl


# -- the list -------------------------------------------------------------------


def test_chats_are_listed_searched_opened_and_deleted(app):
    send(app, "About cats")
    first = conversation_id(app)
    button(app, "New").click().run()
    assert not app.chat_message and "c" not in app.query_params
    send(app, "About dogs")
    second = conversation_id(app)
    app.text_input(key="chat:search").set_value("CATS").run()
    assert [one.key for one in app.button if "chat:open:" in str(one.key)] == [f"chat:open:{first}"]
    app.button(key=f"chat:open:{first}").click().run()
    assert app.chat_message[0].text[0].value == "About cats"
    app.button(key=f"chat:delete:{first}").click().run()
    app.button(key="chat:delete:no").click().run()
    assert session.chats().conversations.get(first)
    app.button(key=f"chat:delete:{first}").click().run()
    app.button(key="chat:delete:yes").click().run()
    kept = session.chats().conversations
    assert not app.exception and kept.get(first) is None and kept.get(second)
    assert "c" not in app.query_params


def test_a_chat_is_renamed_and_cleared(app):
    send(app, "hello")
    app.text_input(key=f"chat:{conversation_id(app)}:title").set_value("Greetings")
    button(app, "Rename").click().run()
    assert title(app) == "**Greetings**"
    button(app, "Clear all messages").click().run()
    assert not app.chat_message and not thread(app)


@pytest.mark.parametrize("name", ["chat.json", "chat.md"])
def test_a_chat_goes_out_and_comes_back(app, name):
    send(app, "hello ![x](y)")
    kept = session.chats().conversations
    before = kept.transcript(conversation_id(app))
    text = transcripts.to_json(before) if name.endswith("json") else transcripts.to_markdown(before)
    app.file_uploader[0].upload(name, text.encode()).run()
    assert not app.exception and len(app.chat_message) == 2
    assert kept.transcript(conversation_id(app)).messages == before.messages


def test_a_file_that_is_no_chat_is_explained(app):
    app.file_uploader[0].upload("x.json", b"[1").run()
    assert "not valid JSON" in app.error[0].value and "c" not in app.query_params
    app.file_uploader[0].upload("y.json", "é".encode("latin-1")).run()
    assert "UTF" in app.error[0].value


def test_an_imported_chat_keeps_its_system_prompt_apart_and_its_question_is_answered(app):
    body = [Message("system", "Be brief.").as_dict(), Message("user", "hello").as_dict()]
    app.file_uploader[0].upload("x.json", json.dumps(body).encode()).run()
    assert app.text_area(key=f"chat:{conversation_id(app)}:system").value == "Be brief."
    assert [message.name for message in app.chat_message] == ["user"]
    button(app, "Answer").click().run()
    ended(app)
    assert [message.name for message in app.chat_message] == ["user", "assistant"]
