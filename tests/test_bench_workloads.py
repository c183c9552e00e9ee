"""What a benchmark asks: lengths to the token, the same for the same seed, and clear refusals."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.bench import workloads
from core.bench.measuring import requests_of
from core.bench.spec import (
    BenchSpec,
    ConversationWorkload,
    RandomWorkload,
    SharedPrefixWorkload,
    TableWorkload,
)
from core.engines.scripted import ScriptedEngine
from core.errors import ParameterError, TableError, UnknownColumn
from core.run_spec import ExampleSpec, PromptSpec
from core.types import EngineSpec, LoraAdapter, TokenPiece

TEMPLATE = PromptSpec(template="Say more about {{ text }}", system="Be brief.")


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(EngineSpec(engine="scripted"))


def spec_of(workload, **values) -> BenchSpec:
    return BenchSpec(**({"kind": "serve", "workload": workload} | values))


def table(tmp_path: Path, rows: list[str], name: str = "rows.csv") -> str:
    path = tmp_path / name
    path.write_text("\n".join(["text", *rows]) + "\n", encoding="utf-8")
    return str(path)


def talks(tmp_path: Path, *conversations, name: str = "talks.json") -> str:
    path = tmp_path / name
    entries = [{"id": str(number), "conversations": talk} for number, talk in enumerate(conversations)]
    lines = name.endswith("jsonl")
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries), encoding="utf-8")
    return str(path)


def turn(who: str, words: int, word: str = "word") -> dict[str, str]:
    return {"from": who, "value": " ".join([word] * words)}


@pytest.mark.parametrize(
    "workload",
    [
        RandomWorkload(num_prompts=10_000, input_len=10**9),
        RandomWorkload(num_prompts=10_000, prefix_len=10**12),
        SharedPrefixWorkload(num_prompts=10_000, suffix_len=10**12),
    ],
    ids=["input_len", "prefix_len", "suffix_len"],
)
def test_what_does_not_fit_is_refused_before_it_is_drawn(engine, workload):
    """A zero too many took a minute and gigabytes before it was refused; this many would end the process."""
    with pytest.raises(ParameterError, match="don't fit: the context holds"):
        workloads.plan(spec_of(workload), engine)


class TestRandom:
    def test_lengths_are_exact(self, engine):
        planned = workloads.plan(spec_of(RandomWorkload(num_prompts=20, input_len=33, output_len=7)), engine)
        assert {len(request.token_ids) for request in planned} == {33}
        assert {request.output_len for request in planned} == {7}
        assert len(planned) == 20

    @hypothesis_settings(deadline=None)
    @given(st.integers(1, 200), st.integers(1, 100), st.floats(0, 0.99))
    def test_lengths_stay_within_their_range(self, input_len, output_len, ratio):
        workload = RandomWorkload(
            num_prompts=30, input_len=input_len, output_len=output_len, range_ratio=ratio
        )
        for request in workloads.plan(spec_of(workload), ScriptedEngine(EngineSpec(engine="scripted"))):
            assert max(1, int(input_len * (1 - ratio))) <= len(request.token_ids)
            assert len(request.token_ids) <= input_len * (1 + ratio) + 1
            assert 1 <= request.output_len <= output_len * (1 + ratio) + 1

    def test_the_same_seed_asks_the_same_and_another_something_else(self, engine):
        spec = spec_of(RandomWorkload(num_prompts=5, input_len=16, range_ratio=0.5), seed=3)
        assert workloads.plan(spec, engine) == workloads.plan(spec, engine, 3)
        assert workloads.plan(spec, engine) != workloads.plan(spec, engine, 4)

    def test_all_prompts_begin_with_the_prefix_and_differ_after_it(self, engine):
        workload = RandomWorkload(num_prompts=50, input_len=8, prefix_len=12)
        planned = workloads.plan(spec_of(workload), engine)
        assert len({request.token_ids[:12] for request in planned}) == 1
        assert len({request.token_ids[12:] for request in planned}) == 50
        assert {len(request.token_ids) for request in planned} == {20}
        assert {request.group for request in planned} == {0}

    def test_no_special_token_is_among_them(self, engine, monkeypatch):
        def pieces(token_ids):
            return [TokenPiece(token, "x", special=token % 2 == 0) for token in token_ids]

        monkeypatch.setattr(engine, "pieces", pieces)
        planned = workloads.plan(spec_of(RandomWorkload(num_prompts=20, input_len=50)), engine)
        assert all(token % 2 for request in planned for token in request.token_ids)

    def test_they_are_drawn_from_all_of_the_vocabulary(self, engine):
        engine.info = dataclasses.replace(engine.info, vocabulary_size=512)
        assert workloads.token_pool(engine).tolist() == list(range(512))

    def test_a_server_that_tells_no_vocabulary_gets_tokens_of_words(self, engine):
        engine.info = dataclasses.replace(engine.info, vocabulary_size=None)
        (request,) = workloads.plan(spec_of(RandomWorkload(num_prompts=1, input_len=40)), engine)
        assert len(request.token_ids) == 40
        assert engine.decode(request.token_ids).replace(" ", "").isalpha()

    def test_what_does_not_fit_the_context_is_refused_with_figures(self):
        engine = ScriptedEngine(EngineSpec(engine="scripted", max_model_len=64))
        fits = RandomWorkload(num_prompts=2, input_len=48, output_len=16)
        assert len(workloads.plan(spec_of(fits), engine)) == 2
        with pytest.raises(ParameterError, match=r"49 prompt tokens and 16 output tokens .* holds 64"):
            workloads.plan(spec_of(fits.model_copy(update={"input_len": 49})), engine)

    def test_an_engine_that_shows_no_tokens_is_refused_with_its_reason(self, engine):
        engine.info = dataclasses.replace(engine.info, cannot={"tokens": "The server tells no tokens."})
        with pytest.raises(ParameterError, match="The server tells no tokens"):
            workloads.plan(spec_of(RandomWorkload()), engine)


class TestSharedPrefix:
    def test_groups_begin_alike_and_are_equally_large(self, engine):
        workload = SharedPrefixWorkload(num_prompts=30, num_prefixes=5, prefix_len=20, suffix_len=10)
        planned = workloads.plan(spec_of(workload), engine)
        groups = Counter(request.group for request in planned)
        assert groups == dict.fromkeys(range(5), 6)
        prefixes = {(request.group, request.token_ids[:20]) for request in planned}
        assert len(prefixes) == len({prefix for _group, prefix in prefixes}) == 5
        assert len({request.token_ids for request in planned}) == 30

    def test_groups_are_mixed(self, engine):
        workload = SharedPrefixWorkload(num_prompts=40, num_prefixes=2, prefix_len=4, suffix_len=4)
        order = [request.group for request in workloads.plan(spec_of(workload), engine)]
        assert order not in (sorted(order), [0, 1] * 20)

    def test_no_prompt_is_lost_where_groups_can_not_be_equal(self, engine):
        workload = SharedPrefixWorkload(num_prompts=7, num_prefixes=3, prefix_len=4, suffix_len=4)
        planned = workloads.plan(spec_of(workload), engine)
        assert sorted(Counter(request.group for request in planned).values()) == [2, 2, 3]

    def test_more_prefixes_than_prompts_are_refused(self, engine):
        with pytest.raises(ParameterError, match="8 prefixes can't be shared by 4 prompts"):
            workloads.plan(spec_of(SharedPrefixWorkload(num_prompts=4, num_prefixes=8)), engine)


class TestTable:
    def test_prompts_are_those_of_a_batch_chat_form_and_all(self, engine, tmp_path):
        path = table(tmp_path, ["tea", "coffee"])
        workload = TableWorkload(path=path, prompt=TEMPLATE, num_prompts=None, output_len=9)
        first, second = workloads.plan(spec_of(workload), engine)
        assert engine.decode(first.token_ids) == (
            "<system>\nBe brief.\n<user>\nSay more about tea\n<assistant>\n"
        )
        assert "coffee" in engine.decode(second.token_ids)
        assert (first.output_len, second.output_len) == (9, 9)

    def test_rows_are_drawn_with_the_seed(self, engine, tmp_path):
        path = table(tmp_path, [f"thing{number}" for number in range(600)])
        spec = spec_of(TableWorkload(path=path, prompt=TEMPLATE, num_prompts=300))
        planned = workloads.plan(spec, engine, 1)
        assert len({request.token_ids for request in planned}) == 300
        assert planned == workloads.plan(spec, engine, 1)
        assert planned != workloads.plan(spec, engine, 2)
        assert planned[0].output_len is None

    def test_a_table_with_fewer_rows_is_asked_once_not_twice(self, engine, tmp_path):
        """The second time would come from the prefix cache."""
        workload = TableWorkload(path=table(tmp_path, ["a", "b", "c"]), prompt=TEMPLATE, num_prompts=10)
        assert len(workloads.plan(spec_of(workload), engine)) == 3

    def test_rows_that_a_batch_would_skip_are_left_out(self, engine, tmp_path):
        path = table(tmp_path, ["tea", '" "', "milk"])
        workload = TableWorkload(path=path, prompt=PromptSpec(template="{{ text }}"), num_prompts=None)
        assert len(workloads.plan(spec_of(workload), engine)) == 2

    def test_a_row_that_does_not_fit_is_named(self, tmp_path):
        engine = ScriptedEngine(EngineSpec(engine="scripted", max_model_len=32))
        path = table(tmp_path, ["tea", " ".join(["word"] * 40)])
        workload = TableWorkload(path=path, prompt=TEMPLATE, num_prompts=None)
        with pytest.raises(ParameterError, match=r"Row 2 of rows\.csv does not fit.* 4\d tokens"):
            workloads.plan(spec_of(workload), engine)

    def test_a_table_without_any_prompt_says_why(self, engine, tmp_path):
        workload = TableWorkload(path=table(tmp_path, ['" "']), prompt=PromptSpec(template="{{ text }}"))
        with pytest.raises(ParameterError, match=r"No row of rows\.csv makes a prompt\. The prompt is empty"):
            workloads.plan(spec_of(workload), engine)

    def test_few_shot_examples_are_part_of_the_prompt(self, engine, tmp_path):
        examples = (ExampleSpec(user="wood", assistant="trees"),)
        prompt = PromptSpec(template="{{ text }}", examples=examples)
        workload = TableWorkload(path=table(tmp_path, ["tea"]), prompt=prompt)
        (request,) = workloads.plan(spec_of(workload), engine)
        assert "<assistant>\ntrees" in engine.decode(request.token_ids)

    def test_a_row_has_its_own_parameters(self, engine, tmp_path):
        """Benchmarks of such tables were refused, though batches ask them."""
        path = tmp_path / "rows.csv"
        path.write_text("text,most,warmth\ntea,5,0.5\ncoffee,,0.7\nmilk,many,1\n")
        columns = {"max_tokens": "most", "temperature": "warmth"}
        prompt = PromptSpec(template="{{ text }}", param_columns=columns)
        workload = TableWorkload(path=str(path), prompt=prompt, num_prompts=None)
        spec = spec_of(workload, params={"temperature": 0.7, "max_tokens": 9, "top_p": 0.9})
        planned = workloads.plan(spec, engine)
        # "many" is no number: a batch would not send that row
        assert [one.params for one in planned] == [{"max_tokens": 5, "temperature": 0.5}, {}]
        asked = requests_of(planned, spec.params, ignore_eos=True, max_model_len=8192, name="x")
        assert [one.params for one in asked] == [
            {"temperature": 0.5, "max_tokens": 5, "top_p": 0.9},
            {"temperature": 0.7, "max_tokens": 9, "top_p": 0.9},
        ]
        fixed = [dataclasses.replace(one, output_len=3) for one in planned]
        asked = requests_of(fixed, spec.params, ignore_eos=True, max_model_len=8192, name="x")
        assert [one.params for one in asked] == [
            {"temperature": 0.5, "max_tokens": 3, "top_p": 0.9, "ignore_eos": True},
            {"temperature": 0.7, "max_tokens": 3, "top_p": 0.9, "ignore_eos": True},
        ]

    def test_rows_are_answered_by_their_adapters_and_warmed_up_with_each(self, engine, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_text("text,by\ntea,\ncoffee,base\nmilk,red\nwater,blue\n")
        adapters = {
            name: LoraAdapter(name, "/none", number) for number, name in enumerate(["red", "blue"], 7)
        }
        prompt = PromptSpec(template="{{ text }}", adapter="blue", adapter_column="by")
        spec = spec_of(TableWorkload(path=str(path), prompt=prompt, num_prompts=None), num_warmups=3)
        planned = workloads.plan(spec, engine, None, adapters)
        red, blue = adapters["red"], adapters["blue"]
        assert [one.adapter for one in planned] == [blue, None, red, blue]
        asked = requests_of(planned, {}, ignore_eos=False, max_model_len=8192, name="x")
        assert [one.adapter for one in asked] == [blue, None, red, blue]
        assert [one.adapter for one in workloads.warmups(spec, engine, planned)] == [blue, None, red]
        with pytest.raises(ParameterError, match="There is no adapter 'blue'"):
            workloads.plan(spec, engine, None, {"red": red})

    def test_lines_of_a_batch_file_say_themselves_what_is_asked(self, engine, tmp_path):
        path = tmp_path / "lines.jsonl"
        bodies = [
            {"messages": [{"role": "user", "content": "tea"}], "max_tokens": 4},
            {"prompt": "coffee", "temperature": 0},
        ]
        urls = ["/v1/chat/completions", "/v1/completions"]
        lines = [
            {"custom_id": url, "method": "POST", "url": url, "body": body}
            for url, body in zip(urls, bodies, strict=True)
        ]
        path.write_text("\n".join(map(json.dumps, lines)))
        workload = TableWorkload(path=str(path), prompt=PromptSpec(mode="openai"), num_prompts=None)
        chat, text = workloads.plan(spec_of(workload), engine)
        assert engine.decode(chat.token_ids) == "<user>\ntea\n<assistant>\n"
        assert (engine.decode(text.token_ids), text.params) == ("coffee", {"temperature": 0})
        assert chat.params == {"max_tokens": 4}

    @pytest.mark.parametrize(
        ("values", "what"),
        [({"turns": ("And then?",)}, "later turns"), ({"turns_column": "text"}, "later turns")],
    )
    def test_what_a_benchmark_can_not_send_is_refused(self, engine, tmp_path, values, what):
        workload = TableWorkload(
            path=table(tmp_path, ["tea"]), prompt=PromptSpec(template="{{ text }}", **values)
        )
        with pytest.raises(ParameterError, match=what):
            workloads.plan(spec_of(workload), engine)

    def test_a_wrong_template_and_a_missing_file_are_said(self, engine, tmp_path):
        prompt = PromptSpec(template="{{ txt }}")
        with pytest.raises(UnknownColumn, match="txt"):
            workloads.plan(spec_of(TableWorkload(path=table(tmp_path, ["a"]), prompt=prompt)), engine)
        with pytest.raises(TableError):
            workloads.plan(spec_of(TableWorkload(path=str(tmp_path / "none.csv"), prompt=TEMPLATE)), engine)

    def test_nothing_is_left_on_the_disk(self, engine, tmp_path, monkeypatch):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        workload = TableWorkload(path=table(tmp_path, ["tea"]), prompt=TEMPLATE)
        workloads.plan(spec_of(workload), engine)
        assert list(scratch.iterdir()) == []


class TestConversations:
    @pytest.mark.parametrize("name", ["talks.json", "talks.jsonl"])
    def test_the_first_prompt_is_asked_for_as_long_an_answer(self, engine, tmp_path, name):
        talk = [turn("human", 6), turn("gpt", 11), turn("human", 30), turn("gpt", 30)]
        (request,) = workloads.plan(
            spec_of(ConversationWorkload(path=talks(tmp_path, talk, name=name))), engine
        )
        assert engine.decode(request.token_ids) == " ".join(["word"] * 6)
        assert request.output_len == 11

    def test_the_prompt_gets_the_models_own_beginning_and_the_answer_does_not(
        self, engine, tmp_path, monkeypatch
    ):
        def encode(texts, *, add_special_tokens=False):
            return [[0] * add_special_tokens + [1] * len(text.split()) for text in texts]

        monkeypatch.setattr(engine, "encode", encode)
        path = talks(tmp_path, [turn("human", 6), turn("gpt", 11)])
        (request,) = workloads.plan(spec_of(ConversationWorkload(path=path)), engine)
        assert (request.token_ids, request.output_len) == ((0, 1, 1, 1, 1, 1, 1), 11)

    def test_an_answers_length_can_be_set(self, engine, tmp_path):
        path = talks(tmp_path, [turn("human", 6), turn("gpt", 1)])
        workload = ConversationWorkload(path=path, output_len=3)
        assert workloads.plan(spec_of(workload), engine)[0].output_len == 3
        with pytest.raises(ParameterError, match="None of the 1 conversations"):  # 1 token: too short
            workloads.plan(spec_of(workload.model_copy(update={"output_len": None})), engine)

    def test_too_short_and_too_long_ones_are_left_out_as_vllm_does(self, engine, tmp_path):
        path = talks(
            tmp_path,
            [turn("human", 3), turn("gpt", 10)],
            [turn("human", 10), turn("gpt", 3)],
            [turn("human", 1025), turn("gpt", 10)],
            [turn("human", 1024), turn("gpt", 1025)],
            [turn("human", 1024), turn("gpt", 1024)],
            [turn("human", 4), turn("gpt", 4)],
        )
        planned = workloads.plan(spec_of(ConversationWorkload(path=path)), engine)
        assert sorted(len(request.token_ids) for request in planned) == [4, 1024]

    def test_what_a_shorter_context_can_not_hold_is_left_out(self, tmp_path):
        engine = ScriptedEngine(EngineSpec(engine="scripted", max_model_len=32))
        path = talks(tmp_path, [turn("human", 20), turn("gpt", 13)], [turn("human", 20), turn("gpt", 12)])
        (request,) = workloads.plan(spec_of(ConversationWorkload(path=path)), engine)
        assert request.output_len == 12

    def test_entries_that_are_no_conversation_are_passed_over(self, engine, tmp_path):
        path = talks(
            tmp_path,
            "text",
            None,
            [],
            [{"from": "human"}, {"value": 7}],
            [turn("gpt", 9), turn("gpt", 9)],
            [turn("system", 5), turn("user", 8), turn("assistant", 9)],
            [{"from": "human", "value": "half \ud800 a character here"}, turn("gpt", 5)],
        )
        planned = workloads.plan(spec_of(ConversationWorkload(path=path)), engine)
        assert sorted(request.output_len for request in planned) == [5, 9]
        assert any("half ? a" in engine.decode(request.token_ids) for request in planned)

    def test_as_many_as_asked_for_are_drawn_with_the_seed(self, engine, tmp_path):
        path = talks(tmp_path, *([turn("human", 5 + n), turn("gpt", 9)] for n in range(400)))
        spec = spec_of(ConversationWorkload(path=path, num_prompts=300))
        planned = workloads.plan(spec, engine, 5)
        assert len(planned) == 300
        assert planned == workloads.plan(spec, engine, 5) != workloads.plan(spec, engine, 6)

    def test_another_file_is_refused(self, engine, tmp_path):
        with pytest.raises(ParameterError, match="no key 'conversations'"):
            workloads.plan(spec_of(ConversationWorkload(path=table(tmp_path, ["tea"]))), engine)
        broken = tmp_path / "broken.json"
        broken.write_text("[{", encoding="utf-8")
        with pytest.raises((TableError, ParameterError)):
            workloads.plan(spec_of(ConversationWorkload(path=str(broken))), engine)


class TestKinds:
    def test_a_latency_benchmark_is_one_batch(self, engine):
        spec = spec_of(RandomWorkload(input_len=12, output_len=4), kind="latency", batch_size=3)
        assert [len(request.token_ids) for request in workloads.plan(spec, engine)] == [12, 12, 12]

    def test_a_latency_benchmark_wants_equal_lengths(self, engine, tmp_path):
        for workload in (
            RandomWorkload(range_ratio=0.5),
            TableWorkload(path=table(tmp_path, ["tea"]), prompt=TEMPLATE),
        ):
            with pytest.raises(ParameterError, match="prompts of one length"):
                workloads.plan(spec_of(workload, kind="latency"), engine)

    def test_warm_ups_are_as_long_but_share_nothing_with_what_is_measured(self, engine):
        workload = SharedPrefixWorkload(
            num_prompts=6, num_prefixes=2, prefix_len=32, suffix_len=8, output_len=5
        )
        spec = spec_of(workload, num_warmups=9)
        planned = workloads.plan(spec, engine)
        warmups = workloads.warmups(spec, engine, planned)
        assert len(warmups) == 9
        assert {(len(one.token_ids), one.output_len) for one in warmups} == {(40, 5)}
        beginnings = {request.token_ids[:8] for request in planned}
        assert not beginnings & {one.token_ids[:8] for one in warmups}
        assert workloads.warmups(spec.model_copy(update={"num_warmups": 0}), engine, planned) == []
