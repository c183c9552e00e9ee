"""The compare page, run as Streamlit runs it, with the scripted engine."""

import json

import pytest
from apps import button, opened, until
from waiting import until as waited

from core.comparing import report
from core.comparing.cells import Place
from core.comparing.spec import ComparisonSpec, PromptItem, SetSpec
from core.errors import ParameterError
from pages.parts import compare_use, session
from pages.parts.compare_charts import Estimate, forest
from pages.parts.compare_grid import texts
from pages.parts.compare_sets import automatic_names
from pages.parts.compare_setup import seeds_of


@pytest.fixture
def app(workspace):
    return opened("compare")


def field(elements, label):
    return next(one for one in elements if one.label == label)


def words(app):
    """All Markdown and captions, without what escapes them."""
    return "\n".join(one.value for one in [*app.markdown, *app.caption]).replace("\\", "")


def press(app, label):
    button(app, label).click().run()
    assert not app.exception


def ask(app, *prompts):
    """Write prompts into the form."""
    for place, prompt in enumerate(prompts):
        if place:
            press(app, "Add a prompt")
        fields = [one for one in app.text_area if one.label.startswith("Prompt")]
        fields[place].set_value(prompt).run()


def view(app):
    return session.comparisons().view(app.query_params["x"])


def run(app):
    """Press Run and wait for the answers."""
    press(app, "Run")
    until(app, lambda: not view(app).is_live)
    return view(app)


def look(app, tab):
    field(app.segmented_control, "View").set_value(tab).run()
    assert not app.exception


def matrix(app):
    """What the matrix on the page was given to draw."""
    protos = [one.proto for one in app.get("bidi_component")]
    return next(json.loads(proto.json) for proto in protos if "matrix" in proto.component_name)


def start(prompts=("One?", "Two?"), sets=2, **fields):
    """A comparison from outside the page; gives its id once it is answered."""
    spec = ComparisonSpec(
        prompts=tuple(PromptItem(messages=text) for text in prompts),
        sets=tuple(SetSpec(name=f"set {n}", params={"temperature": n / 2}) for n in range(sets)),
        **fields,
    )
    comparison_id = session.comparisons().start(spec)
    waited(lambda: not session.comparisons().view(comparison_id).is_live)
    return comparison_id


def open_comparison(app, comparison_id):
    app.query_params["x"] = comparison_id
    app.run()
    assert not app.exception


# -- setting up -----------------------------------------------------------------------


def test_nothing_runs_before_something_is_asked(app):
    assert button(app, "Run").disabled and "write a prompt" in words(app)
    ask(app, "Why is the sky blue?")
    assert not button(app, "Run").disabled
    assert "1 prompt × 3 sets × 1 sample = 3 answers" in words(app)


def test_three_temperatures_are_compared_and_stay_in_the_address(app):
    ask(app, "Why is the sky blue?")
    shown = run(app)
    assert [one.name for one in shown.spec.sets] == ["temperature 0", "temperature 0.7", "temperature 1.2"]
    assert shown.complete == 3 and shown.spec.seeds == (1,)
    drawn = matrix(app)
    assert [one["name"] for one in drawn["sets"]] == [one.name for one in shown.spec.sets]
    assert drawn["prompts"][0]["text"] == "Why is the sky blue?"
    texts_drawn = ["".join(part for _changed, part in cell[0]["parts"]) for cell in drawn["rows"][0]]
    assert texts_drawn == [shown.cells[Place(0, place, 0)].text for place in range(3)]


def test_several_prompts_samples_right_answers_and_a_name(app):
    field(app.toggle, "I know the right answers").set_value(True).run()
    ask(app, "One?", "Two?", "Three?")
    [one for one in app.text_area if one.label == "Right answer"][1].set_value("zwei").run()
    field(app.text_area, "System prompt").set_value("Be brief.").run()
    field(app.number_input, "Answers to each prompt").set_value(2).run()
    field(app.text_input, "Seeds").set_value("7").run()
    [one for one in app.text_input if one.label == "Name"][-1].set_value("Counting").run()
    assert "3 prompts × 3 sets × 2 samples = 18 answers" in words(app)
    shown = run(app)
    assert shown.name == "Counting" and shown.spec.seeds == (7, 8)
    assert [item.reference for item in shown.spec.prompts] == [None, "zwei", None]
    assert shown.spec.prompts[0].messages[0].content == "Be brief."


def test_a_prompt_that_is_removed_is_gone_and_the_others_keep_their_texts(app):
    ask(app, "One?", "Two?", "Three?")
    next(one for one in app.button if one.key and ":prompt-remove:1" in one.key).click().run()
    ask_fields = [one.value for one in app.text_area if one.label.startswith("Prompt")]
    assert ask_fields == ["One?", "Three?"]
    press(app, "Add a prompt")
    assert [one.value for one in app.text_area if one.label.startswith("Prompt")] == ["One?", "Three?", ""]


def test_sets_are_added_duplicated_removed_and_named(app):
    ask(app, "One?")
    sliders = [one for one in app.slider if one.label == "Temperature"]
    sliders[1].set_value(0.3).run()
    next(one for one in app.button if one.key and one.key.endswith(":set:1:copy")).click().run()
    assert [one.value for one in app.slider if one.label == "Temperature"] == [0.0, 0.3, 0.3, 1.2]
    next(one for one in app.button if one.key and one.key.endswith(":set:0:remove")).click().run()
    press(app, "Add a set")
    assert [one.value for one in app.slider if one.label == "Temperature"] == [0.3, 0.3, 1.2, 1.0]
    [one for one in app.text_input if one.label == "Name"][-2].set_value("wild").run()
    names = [one.name for one in run(app).spec.sets]
    assert "wild" in names and len(set(names)) == 4


def test_a_set_has_a_prompt_of_its_own(app):
    ask(app, "Sky?")
    next(one for one in app.toggle if one.label == "Own system prompt").set_value(True).run()
    [one for one in app.text_area if one.label == "System prompt"][-1].set_value("Shout.").run()
    [one for one in app.toggle if one.label == "Own template"][1].set_value(True).run()
    field(app.text_area, "Template").set_value("In French: {{ prompt }}").run()
    spec = run(app).spec
    assert spec.sets[0].system == "Shout." and spec.sets[1].template == "In French: {{ prompt }}"
    assert spec.sets[2].system is None and spec.sets[2].template is None


def test_a_template_that_cannot_work_is_told_before_anything_runs(app):
    ask(app, "Sky?")
    next(one for one in app.toggle if one.label == "Own template").set_value(True).run()
    field(app.text_area, "Template").set_value("{{ colour }}").run()
    assert button(app, "Run").disabled and "colour" in words(app)


def test_a_grid_makes_every_combination_and_becomes_columns(app):
    ask(app, "Sky?")
    field(app.segmented_control, "Sets").set_value("grid").run()
    assert "1 prompt × 8 sets" in words(app)
    values = [one for one in app.text_input if one.label == "Values"]
    values[0].set_value("0, 0.5").run()
    assert "4 sets" in words(app) and "temperature 0, top_p 0.8" in words(app)
    press(app, "Edit them as columns")
    assert [one.value for one in app.slider if one.label == "Temperature"] == [0.0, 0.0, 0.5, 0.5]
    params = [one.params for one in run(app).spec.sets]
    assert [(one["temperature"], one["top_p"]) for one in params] == [
        (0, 0.8),
        (0, 0.95),
        (0.5, 0.8),
        (0.5, 0.95),
    ]


def test_a_grid_varies_system_prompts_too(app):
    ask(app, "Sky?")
    field(app.segmented_control, "Sets").set_value("grid").run()
    [one for one in app.selectbox if one.label == "Vary"][1].set_value("system").run()
    field(app.text_area, "Values").set_value("Be brief.\n---\nBe thorough.\nVery.").run()
    next(one for one in app.text_input if one.label == "Values").set_value("0").run()
    assert [one.system for one in run(app).spec.sets] == ["Be brief.", "Be thorough.\nVery."]


def test_a_wrong_value_of_a_grid_is_named(app):
    ask(app, "Sky?")
    field(app.segmented_control, "Sets").set_value("grid").run()
    next(one for one in app.text_input if one.label == "Values").set_value("0, warm").run()
    assert button(app, "Run").disabled and "warm" in words(app)


def test_prompts_are_rows_of_a_table(app):
    field(app.segmented_control, "Prompts").set_value("table").run()
    press(app, "The example: product reviews")
    until(app, lambda: any(one.label == "Template" for one in app.run().text_area))
    field(app.number_input, "Rows").set_value(3).run()
    field(app.selectbox, "Right answers").set_value("stars").run()
    assert "3 prompts × 3 sets" in words(app)
    shown = run(app)
    assert shown.name == "reviews.csv" and len(shown.spec.prompts) == 3
    assert all(item.reference and item.values["review"] in item.text for item in shown.spec.prompts)
    press(app, "Run it over a table")
    assert "run" in app.query_params and any("positive or negative" in one.value for one in app.text_area)


def test_prompts_are_questions_of_a_chat(app):
    chats = session.chats()
    conversation = chats.create("Be kind.", {"max_tokens": 5})
    chats.send(conversation.conversation_id, "First question", {"max_tokens": 5})
    until(app, lambda: not chats.live(conversation.conversation_id))
    field(app.segmented_control, "Prompts").set_value("chat").run()
    field(app.selectbox, "Chat").set_value(conversation.conversation_id).run()
    shown = run(app)
    roles = [(one.role, one.content) for one in shown.spec.prompts[0].messages]
    assert roles == [("system", "Be kind."), ("user", "First question")]


def test_what_was_entered_outlives_a_visit_to_another_page(app):
    ask(app, "One?", "Two?")
    next(one for one in app.slider if one.label == "Temperature").set_value(0.35).run()
    app.switch_page("pages/home.py").run()
    app.switch_page("pages/compare.py").run()
    assert [one.value for one in app.text_area if one.label.startswith("Prompt")] == ["One?", "Two?"]
    assert next(one.value for one in app.slider if one.label == "Temperature") == 0.35


def test_chats_of_a_file_are_asked_as_they_are(app):
    messages = [{"role": role, "content": text} for role, text in
                (("user", "Hi"), ("assistant", "Hello"), ("user", "And now?"))]  # fmt: skip
    spec = json.dumps({"prompts": [{"messages": messages}], "sets": [{"name": "only"}]}).encode()
    app.file_uploader(key="compare:import").set_value(("spec.json", spec, "application/json")).run()
    assert field(app.segmented_control, "Prompts").value == "kept"
    shown = run(app)
    assert len(shown.spec.prompts[0].messages) == 3 and matrix(app)["prompts"][0]["label"].endswith("turn 2")


# -- looking ---------------------------------------------------------------------------


def test_a_comparison_is_found_again_renamed_changed_repeated_and_deleted(app):
    old = start()
    app.run()
    app.text_input(key="compare:search").set_value("Two").run()
    app.button(key=f"compare:open:{old}").click().run()
    assert app.query_params["x"] == [old] or app.query_params["x"] == old
    field(app.text_input, "Name").set_value("Numbers")
    press(app, "Rename")
    assert view(app).name == "Numbers"
    press(app, "Change")
    assert "x" not in app.query_params
    assert [one.value for one in app.text_area if one.label.startswith("Prompt")] == ["One?", "Two?"]
    assert [one.value for one in app.slider if one.label == "Temperature"] == [0.0, 0.5]
    open_comparison(app, old)
    press(app, "Repeat it")
    until(app, lambda: not view(app).is_live)
    again = view(app)
    assert again.comparison_id != old and again.spec.prompts == session.comparisons().view(old).spec.prompts
    app.button(key=f"compare:delete:{again.comparison_id}").click().run()
    assert "x" not in app.query_params and session.comparisons().view(again.comparison_id) is None


def test_a_comparison_is_stopped_and_the_rest_is_got_later(app, monkeypatch):
    engine = session.runtime().engine
    monkeypatch.setattr(engine, "_seconds_per_token", 0.05)
    ask(app, "word " * 40)
    press(app, "Run")
    assert matrix(app)["live"]
    press(app, "Stop")
    until(app, lambda: not view(app).is_live)
    assert "3 stopped" in words(app)
    monkeypatch.setattr(engine, "_seconds_per_token", 0.0)
    press(app, "Get the rest")
    until(app, lambda: not view(app).is_live)
    assert view(app).complete == 3 and "stopped" not in words(app)


def test_words_that_the_baseline_lacks_are_marked(app):
    open_comparison(app, start(("Sky?",), 3))
    drawn = matrix(app)["rows"][0]
    marked = [[part for changed, part in cell[0]["parts"] if changed] for cell in drawn]
    assert not marked[0] and marked[1]
    field(app.selectbox, "Mark what differs from").set_value("nothing").run()
    assert not any(changed for cell in matrix(app)["rows"][0] for changed, _part in cell[0]["parts"])


def test_two_sets_side_by_side_prompt_by_prompt(app):
    open_comparison(app, start(("One?", "Two?", "Three?"), 3, seeds=(1, 2), top_logprobs=3))
    look(app, "pair")
    field(app.selectbox, "Right").set_value(2).run()
    press(app, "Next")
    shown = view(app)
    drawn = matrix(app)
    assert [one["name"] for one in drawn["sets"]] == ["set 0", "set 2"]
    assert "".join(part for _c, part in drawn["rows"][0][1][0]["parts"]) == shown.cells[Place(1, 2, 0)].text
    field(app.selectbox, "Answer").set_value(1).run()
    field(app.segmented_control, "Show").set_value("formatted").run()
    assert shown.cells[Place(1, 0, 1)].text in words(app)
    field(app.segmented_control, "Show").set_value("tokens").run()
    assert sum("token_view" in one.proto.component_name for one in app.get("bidi_component")) == 2
    press(app, "Previous")
    assert any(one.value == "One?" for one in app.text)


def test_model_output_is_never_a_picture(app):
    open_comparison(app, start(("say ![x](http://example.com/x.png)",)))
    look(app, "pair")
    field(app.segmented_control, "Show").set_value("formatted").run()
    assert "![" not in words(app) and "&#33;[x]" in words(app)


def test_thoughts_are_folded_away_from_the_answers(app):
    open_comparison(app, start(("Let me see: blue it is.</think>It is blue.",)))
    drawn = matrix(app)["rows"][0][0][0]
    text = "".join(part for _changed, part in drawn["parts"])
    assert "It is blue." in text and "Let me see" not in text
    assert ["", "after thinking"] in drawn["note"]
    look(app, "pair")
    field(app.segmented_control, "Show").set_value("formatted").run()
    assert "Let me see" in words(app) and any(one.label == "Thoughts" for one in app.expander)


def test_many_answers_are_shown_page_by_page(app):
    open_comparison(app, start(tuple(f"Question {n}" for n in range(25)), 2))
    assert [one["text"] for one in matrix(app)["prompts"]] == [f"Question {n}" for n in range(20)]


# -- judging ---------------------------------------------------------------------------


def test_scores_say_what_is_shown_and_what_is_not(app):
    open_comparison(app, start(("One?", "Two?")))
    look(app, "scores")
    assert "no difference shown in the answers" in words(app)
    assert "from 6 prompts on" in app.info[0].value
    frame = app.dataframe[0].value
    assert list(frame["Set"]) == ["set 0", "set 1"] and "output_tokens" in frame


def test_a_blind_vote_is_kept_and_counted(app):
    identity = start(("One?", "Two?"))
    open_comparison(app, identity)
    look(app, "votes")
    assert "0 of 2 pairs judged" in app.get("progress")[0].proto.text
    assert "set 0" not in json.dumps(matrix(app)) and "tokens" not in json.dumps(matrix(app)["rows"])
    press(app, "Left is better")
    press(app, "Equally good")
    votes = session.comparisons().votes.list(identity)
    assert [vote.winner for vote in votes] == ["a", "tie"]
    assert "judged every pair" in app.success[0].value
    app.toggle(key=f"compare:votes:{identity}:show").set_value(True).run()
    assert len(app.get("plotly_chart")) == 1


def test_votes_of_a_judge_are_counted_apart_and_give_their_reasons(app):
    identity = start(("One?", "Two?"))
    votes = session.comparisons().votes
    votes.record(identity, 0, 0, 0, 1, "a", "judge:m", {"reasons": ["Shorter.", "Clearer."], "verdicts": []})
    votes.record(identity, 0, 0, 0, 1, "b")
    open_comparison(app, identity)
    look(app, "votes")
    app.toggle(key=f"compare:votes:{identity}:show").set_value(True).run()
    assert "Shorter. / Clearer." in words(app)
    charts = [json.loads(one.proto.spec) for one in app.get("plotly_chart")]
    assert "50% · n = 2 (1–0–1)" in json.dumps(charts, ensure_ascii=False)
    field(app.get("button_group"), "Votes of").set_value(["judge:m"]).run()
    charts = [json.loads(one.proto.spec) for one in app.get("plotly_chart")]
    assert "100% · n = 1 (1–0–0)" in json.dumps(charts, ensure_ascii=False)


def test_a_judge_that_cannot_be_is_refused_in_words(app):
    open_comparison(app, start())
    look(app, "votes")
    field(app.segmented_control, "Judge").set_value("remote").run()
    press(app, "Judge all pairs")
    assert "address" in app.error[0].value


def test_the_loaded_model_judges(app):
    identity = start()
    open_comparison(app, identity)
    look(app, "votes")
    press(app, "Judge all pairs")
    until(app, lambda: session.comparisons().judging.progress(identity).state != "judging")
    progress = session.comparisons().judging.progress(identity)
    assert progress.done == progress.total == 2


# -- taking it further -----------------------------------------------------------------


def test_a_set_becomes_a_preset(app):
    identity = start()
    open_comparison(app, identity)
    app.selectbox(key=f"compare:use:{identity}").set_value(1).run()
    field(app.text_input, "Name of the preset").set_value("Winner")
    press(app, "Save as preset")
    assert session.presets().find("Winner").params["temperature"] == 0.5


def test_a_set_opens_the_batch_page_filled_in(app):
    identity = start(("Is it good?",))
    open_comparison(app, identity)
    app.selectbox(key=f"compare:use:{identity}").set_value(1).run()
    press(app, "Run it over a table")
    app.switch_page("pages/batch.py").run()  # AppTest forgets that the page has changed
    assert "set 1" in app.info[0].value
    press(app, "Use the example table")
    until(app, lambda: any(one.label == "Template" for one in app.run().text_area))
    assert field(app.text_area, "Template").value == "Is it good?"
    assert field(app.slider, "Temperature").value == 0.5


def test_a_promise_to_the_batch_page_can_be_taken_back(app):
    open_comparison(app, start())
    press(app, "Run it over a table")
    app.switch_page("pages/batch.py").run()
    press(app, "Forget it")
    assert not app.info


def test_a_comparison_that_was_deleted_is_a_new_one(app):
    open_comparison(app, "20200101-000000-abcdef")
    assert "x" not in app.query_params and button(app, "Run").disabled


def test_a_comparison_is_exported_and_its_specification_opens_again(app):
    identity = start(("One?", "<script>alert(1)</script>"))
    open_comparison(app, identity)
    made = {one.proto.label: one for one in app.get("download_button")}
    assert list(made) == ["Report", "Answers as CSV", "Specification"]
    page = compare_use._made(identity, report.to_html).decode()
    assert "<script>" not in page and "set 1" in page
    spec = compare_use._made(identity, lambda now, votes: report.to_spec_json(now))
    press(app, "New")
    app.file_uploader(key="compare:import").set_value(("spec.json", spec, "application/json")).run()
    assert next(one.value for one in app.text_area if one.label.startswith("Prompt")) == "One?"
    app.file_uploader(key="compare:import").set_value(("bad.json", b"{", "application/json")).run()
    assert "can't be used" in app.error[0].value


# -- pure parts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entered", "count", "seeds"),
    [("", 2, (None, None)), ("5", 3, (5, 6, 7)), ("1, 9", 2, (1, 9)), ("1，2", 2, (1, 2)), ("-3", 1, (-3,))],
)
def test_seeds(entered, count, seeds):
    assert seeds_of(entered, count) == seeds


@pytest.mark.parametrize(("entered", "count"), [("one", 1), ("1, 2", 3), ("1.5", 1)])
def test_seeds_that_cannot_be(entered, count):
    with pytest.raises(ParameterError):
        seeds_of(entered, count)


def test_texts_are_parted_by_dashes():
    assert texts("one\ntwo\n---\nthree") == ["one\ntwo", "three"]
    assert texts("one\n---\n") == ["one", ""]


def test_sets_are_named_by_what_differs():
    sets = [SetSpec(name="-", params=params) for params in ({"temperature": 1}, {}, {"top_k": 5})]
    assert automatic_names(sets) == ["top_k 0", "top_k 0 (2)", "top_k 5"]
    assert automatic_names(sets[:1]) == ["Set 1"]
    assert automatic_names([sets[0], SetSpec(name="-", system="x")]) == ["Set 1", "own system prompt"]


def test_a_forest_shows_what_is_sure_in_another_colour():
    lines = [
        Estimate("a", 0.2, 0.1, 0.3, "n = 8", "higher", True),
        Estimate("<b>", 0.0, None, None, "n = 1", "none", False),
    ]
    figure = forest(lines, none=0, title="x", words=lambda value: f"{value:.1f}")
    assert len(figure.data) == 2 and figure.data[0].marker.color != figure.data[1].marker.color
    assert figure.layout.xaxis.range[0] < 0 and figure.layout.xaxis.range[1] > 0.3
    assert "<b>" not in figure.layout.yaxis.ticktext[1]
