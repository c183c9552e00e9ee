"""What a run may ask and keep beside a text: samples, turns, structures, shared and repeated answers."""

import json

import pytest
from batch_runs import exported, finish, write_csv

from core import revisions
from core.errors import ParameterError, RunError, TableError
from core.planning import plans
from core.run_spec import EvaluationSpec, Instructions, OutputSpec, OverflowSpec, PlanSpec


@pytest.fixture
def sorted_table(tmp_path):
    """Six rows of three texts."""
    return write_csv(tmp_path / "t.csv", ["id", "text"], [[n, f"text {n % 3}"] for n in range(6)])


# -- duplicates and order ---------------------------------------------------------


def test_equal_deterministic_requests_are_generated_once_and_answer_all_their_rows(
    jobs, sorted_table, tmp_path
):
    asked = Instructions(template="Say {{ text }}", params={"temperature": 0})
    run = jobs.stage(sorted_table, instructions=asked)
    progress = finish(jobs, run)
    assert (progress.generated, progress.counts.ok, progress.counts.shared) == (3, 6, 3)
    rows = exported(run, tmp_path)
    assert [row["id"] for row in rows] == [str(n) for n in range(6)]
    assert [rows[n]["answer"] == rows[n + 3]["answer"] for n in range(3)] == [True] * 3
    assert len({row["answer"] for row in rows}) == 3
    tokens = {row["answer"]: row["answer_output_tokens"] for row in rows}
    assert progress.counts.output_tokens == sum(tokens.values())  # each answer's tokens count once


@pytest.mark.parametrize(
    ("params", "plan"),
    [({"temperature": 1}, PlanSpec()), ({"temperature": 0}, PlanSpec(dedupe=False))],
)
def test_answers_of_chance_and_those_not_to_be_shared_are_generated_for_each_row(
    jobs, sorted_table, params, plan
):
    run = jobs.stage(sorted_table, instructions=Instructions(template="{{ text }}", params=params, plan=plan))
    assert finish(jobs, run).generated == 6


def test_a_new_plan_gives_kept_answers_to_the_rows_that_share_them(jobs, sorted_table):
    """A run begun without sharing has the answer of a row, but not of the row that now shares it."""
    asked = Instructions(template="{{ text }}", params={"temperature": 0},
                         plan=PlanSpec(dedupe=False, reorder=False))  # fmt: skip
    run = jobs.stage(sorted_table, instructions=asked)
    jobs.start(run.run_id, rows=3)
    assert jobs.wait(run.run_id, 30).counts.ok == 3
    run.update(plan=PlanSpec(reorder=False))
    progress = finish(jobs, run)
    assert (progress.generated, progress.counts.ok, progress.counts.shared) == (0, 6, 3)


def test_rows_with_equal_beginnings_run_together_and_come_back_in_the_files_order(jobs, tmp_path):
    documents = [f"document {n} " + "word " * 80 for n in range(4)]
    rows = [[f"q{n}", documents[n % 4]] for n in range(40)]
    table = write_csv(tmp_path / "t.csv", ["question", "document"], rows)
    run = jobs.stage(table, instructions=Instructions(template="{{ document }}\n{{ question }}"))
    finish(jobs, run)
    with run.connect() as connection:
        plan = plans.info(connection)
    assert plan.reordered
    assert plan.prefix_planned > 0.8 > plan.prefix_file_order
    answered = exported(run, tmp_path)
    assert [row["question"] for row in answered] == [row[0] for row in rows]
    assert all(row["answer"].endswith(row["question"]) for row in answered)


def test_trying_a_few_rows_keeps_them(jobs, sorted_table):
    run = jobs.stage(sorted_table, instructions=Instructions(template="{{ id }} {{ text }}"))
    jobs.start(run.run_id, rows=2)
    tried = jobs.wait(run.run_id, 30)
    assert (tried.state, tried.counts.ok) == ("stopped", 2)
    assert finish(jobs, run).generated == 4


# -- fields -------------------------------------------------------------------------


def test_fields_are_read_as_json_after_the_instruction(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["title", "info"], [["A", "x"], ["B", "x"], ["C", "y"]])
    asked = Instructions(mode="fields", instruction="Judge.", fields=("title", "info"))
    run = jobs.stage(table, instructions=asked)
    assert finish(jobs, run).counts.ok == 3
    answers = [row["answer"] for row in exported(run, tmp_path)]
    assert all('"title":' in answer and '"info":' in answer for answer in answers)


# -- doing it again -----------------------------------------------------------------


def test_failed_rows_are_retried_and_the_others_left_alone(jobs, batches, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["good"], ["word " * 9000], ["fine"]])
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}"))
    assert finish(jobs, run).counts.errors == 1
    revisions.retry_failed(run, batches.store)
    assert jobs.progress(run.run_id).state == "stopped"
    run.update(overflow=OverflowSpec(action="right"))
    progress = finish(jobs, run)
    assert (progress.counts.ok, progress.counts.errors, progress.generated) == (3, 0, 1)


def test_cut_answers_are_redone_with_more_tokens_and_stay_until_then(jobs, batches, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["one two three four five six"], ["a"]])
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}", params={"max_tokens": 3}))
    finish(jobs, run)
    before = exported(run, tmp_path)
    assert [row["answer_finish_reason"] for row in before] == ["length", "stop"]
    with pytest.raises(RunError, match="cut at 3 tokens"):
        revisions.redo_truncated(run, batches.store, 3)
    assert revisions.redo_truncated(run, batches.store, 50) == 1
    assert exported(run, tmp_path) == before
    progress = finish(jobs, run)
    after = exported(run, tmp_path)
    assert progress.generated == 1
    assert after[0]["answer_finish_reason"] == "stop"
    assert after[0]["answer"].startswith(before[0]["answer"])
    assert after[1] == before[1]


def test_a_changed_prompt_asks_only_the_rows_whose_request_changes(jobs, batches, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["id", "note"], [["1", ""], ["2", "new"], ["3", ""]])
    run = jobs.stage(table, instructions=Instructions(template="Row {{ id }}", params={"temperature": 0}))
    finish(jobs, run)
    before = exported(run, tmp_path)
    edited = Instructions(
        template="Row {{ id }}{% if note %} ({{ note }}){% endif %}", params={"temperature": 0}
    )
    assert revisions.edit(run, batches.store, edited) == 3
    progress = finish(jobs, run)
    after = exported(run, tmp_path)
    assert (progress.generated, progress.counts.ok) == (1, 3)
    assert [after[n] == before[n] for n in range(3)] == [True, False, True]
    assert "(new)" in after[1]["answer"]


def test_more_tokens_for_all_ask_only_the_rows_that_were_cut(jobs, batches, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["one two three four five six"], ["a"]])
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}", params={"max_tokens": 3}))
    finish(jobs, run)
    asked = revisions.instructions_of(run)
    revisions.edit(run, batches.store, Instructions(template=asked.template,
                                                 params={**asked.params, "max_tokens": 60}))  # fmt: skip
    assert finish(jobs, run).generated == 1


# -- long prompts ---------------------------------------------------------------------


@pytest.mark.parametrize(("side", "kept"), [("left", "end"), ("right", "start")])
def test_a_long_prompt_is_cut_where_the_user_says_and_the_row_says_how_much(jobs, tmp_path, side, kept):
    table = write_csv(tmp_path / "t.csv", ["text"], [["start " + "word " * 100 + "end"], ["short"]])
    asked = Instructions(
        template="{{ text }}", overflow=OverflowSpec(action=side, prompt_tokens=20), params={"min_tokens": 2}
    )
    run = jobs.stage(table, instructions=asked)
    assert finish(jobs, run).counts.ok == 2
    rows = exported(run, tmp_path)
    assert rows[0]["answer_prompt_tokens"] <= 20
    assert 80 <= rows[0]["answer_truncated_tokens"] <= 90
    assert rows[1]["answer_truncated_tokens"] is None
    other = {"end": "start", "start": "end"}[kept]
    assert other not in rows[0]["answer"].split()


def test_a_long_prompt_is_an_error_unless_told_otherwise(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["word " * 30], ["short"]])
    run = jobs.stage(
        table, instructions=Instructions(template="{{ text }}", overflow=OverflowSpec(prompt_tokens=20))
    )
    assert finish(jobs, run).counts.errors == 1
    assert "at most 20 are allowed" in exported(run, tmp_path)[0]["answer_error"]


# -- several answers, turns, structures --------------------------------------------------


def test_several_answers_become_columns_or_rows(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["a"], [""], ["b"]])
    for samples in ("columns", "rows"):
        asked = Instructions(template="{{ text }}", params={"n": 3}, output=OutputSpec(samples=samples))
        run = jobs.stage(table, instructions=asked)
        finish(jobs, run)
        rows = exported(run, tmp_path)
        if samples == "columns":
            assert len(rows) == 3
            assert len({rows[0]["answer"], rows[0]["answer_2"], rows[0]["answer_3"]}) == 3
            assert rows[1]["answer_2"] is None
            wide = rows
        else:
            assert [row["text"] for row in rows] == ["a"] * 3 + [""] + ["b"] * 3
            assert [row["answer_sample"] for row in rows if row["text"] == "b"] == [1, 2, 3]
    assert len(wide) == 3


def test_turns_are_asked_in_sequence_and_each_answer_is_kept(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["hello"], ["bye"]])
    asked = Instructions(template="{{ text }}", turns=("And {{ text }} again?", "In one word?"))
    run = jobs.stage(table, instructions=asked)
    progress = finish(jobs, run)
    assert progress.generated == 6
    row = exported(run, tmp_path)[0]
    answers = [row["answer_turn_1"], row["answer_turn_2"], row["answer"]]
    assert len(set(answers)) == 3
    assert row["answer"].endswith("In one word?")  # the scripted engine repeats the end of what it read
    assert "hello again?" in row["answer_turn_2"]


def test_turns_of_a_row_come_from_a_column_of_json(jobs, tmp_path):
    rows = [["hi", '["why?", "how?"]'], ["ho", ""], ["hm", "not json"]]
    table = write_csv(tmp_path / "t.csv", ["text", "more"], rows)
    run = jobs.stage(table, instructions=Instructions(template="{{ text }}", turns_column="more"))
    progress = finish(jobs, run)
    assert (progress.generated, progress.counts.ok, progress.counts.errors) == (4, 2, 1)
    answered = exported(run, tmp_path)
    assert len(json.loads(answered[0]["answer_turns"])) == 3
    assert "more" in answered[2]["answer_error"]


def test_a_schemas_properties_become_columns_with_their_types_and_validity(jobs, tmp_path):
    schema = {
        "type": "object",
        "properties": {
            "label": {"enum": ["good", "bad"]},
            "score": {"type": "integer"},
            "a/b'c": {"type": "boolean"},
        },
        "required": ["label", "score", "a/b'c"],
    }  # fmt: skip
    table = write_csv(tmp_path / "t.csv", ["text"], [["a"], [""]])
    run = jobs.stage(
        table,
        instructions=Instructions(template="{{ text }}", params={"structured_outputs": {"json": schema}}),
    )
    finish(jobs, run)
    row, empty = exported(run, tmp_path)
    answer = json.loads(row["answer"])
    assert (row["answer_label"], row["answer_score"], row["answer_a/b'c"]) == tuple(answer.values())
    assert row["answer_valid"] is True
    assert empty["answer_score"] is None
    run.export(tmp_path / "out.csv")
    assert "answer_score" in (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()[0]


def test_each_choice_has_a_column_with_its_probability(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["a"], ["b"]])
    asked = Instructions(
        template="{{ text }}",
        params={"structured_outputs": {"choice": ["yes", "no", 'it\'s "odd"']}},
        output=OutputSpec(choice_probabilities=True, logprobs=True),
    )
    run = jobs.stage(table, instructions=asked)
    finish(jobs, run)
    for row in exported(run, tmp_path):
        chances = [row["answer_p_yes"], row["answer_p_no"], row['answer_p_it\'s "odd"']]
        assert sum(chances) == pytest.approx(1)
        assert row["answer"] in ("yes", "no", 'it\'s "odd"')


def test_log_probabilities_become_columns(jobs, tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text"], [["a b c"]])
    asked = Instructions(template="{{ text }}", params={"logprobs": 0}, output=OutputSpec(logprobs=True))
    run = jobs.stage(table, instructions=asked)
    finish(jobs, run)
    (row,) = exported(run, tmp_path)
    assert row["answer_logprob"] < 0
    assert row["answer_mean_logprob"] == pytest.approx(row["answer_logprob"] / row["answer_output_tokens"])


def test_a_column_gives_a_rows_own_parameters(jobs, tmp_path):
    table = write_csv(
        tmp_path / "t.csv", ["text", "most"], [["a b c", "2"], ["a b c", ""], ["a b c", "none"]]
    )
    asked = Instructions(
        template="{{ text }}", param_columns={"max_tokens": "most"}, params={"temperature": 0}
    )
    run = jobs.stage(table, instructions=asked)
    finish(jobs, run)
    rows = exported(run, tmp_path)
    assert rows[0]["answer_output_tokens"] == 2
    assert rows[1]["answer_output_tokens"] > 2
    assert rows[2]["answer_status"] == "error"
    assert "'most'" in rows[2]["answer_error"]


def test_chats_of_a_column_are_sent_as_they_are(jobs, tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"}]
    table = write_csv(tmp_path / "t.csv", ["chat"], [[json.dumps(chat)], ["[]"]])
    run = jobs.stage(table, instructions=Instructions(mode="messages", messages_column="chat"))
    finish(jobs, run)
    rows = exported(run, tmp_path)
    assert rows[0]["answer"].endswith("Hi there")
    assert rows[1]["answer_status"] == "error"


def test_an_openai_batch_file_comes_back_as_openai_gives_it(jobs, tmp_path):
    body = {"model": "any", "messages": [{"role": "user", "content": "Hello you"}], "max_tokens": 5}
    lines = [
        {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "two", "method": "POST", "url": "/v1/images", "body": {}},
    ]
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run = jobs.stage(path, instructions=Instructions(mode="openai"))
    finish(jobs, run)
    first, second = exported(run, tmp_path, format="openai-batch")
    assert (first["custom_id"], second["custom_id"]) == ("one", "two")
    assert first["response"]["status_code"] == 200
    answer = first["response"]["body"]
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] <= 5
    assert second["response"] is None
    assert second["error"]["message"]


# -- what can't be asked --------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"turns": ("more?",), "params": {"n": 2}}, ParameterError, "several turns"),
        ({"params": {"n": 2, "temperature": 0}}, ParameterError, "temperature"),
        ({"output": OutputSpec(choice_probabilities=True)}, ParameterError, "choices"),
        ({"answer_column": "id", "params": {}}, TableError, "'id'"),
        ({"evaluation": EvaluationSpec(reference_column="nothing")}, Exception, "nothing"),
        ({"params": {"structured_outputs": {"choice": ["status"]}},
          "output": OutputSpec(choice_probabilities=True), "answer_column": "text_p"},
         TableError, "text_p_status"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said_before_the_run(jobs, tmp_path, asked, error, says):
    table = write_csv(tmp_path / "t.csv", ["id", "text", "text_p_status"], [["1", "a", "b"]])
    run = jobs.stage(table)
    with pytest.raises(error, match=says):
        run.configure(Instructions(template="{{ text }}", **asked))
    assert run.spec.prompt is None
