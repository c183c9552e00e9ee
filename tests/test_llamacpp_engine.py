"""llama.cpp: what the contract of all engines doesn't ask. Places and grammars need no llama.cpp."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import embedded, machine, structured
from core.engines.llamacpp_grammar import grammar_of
from core.engines.llamacpp_memory import Places, common_prefix
from core.engines.tokenizer import Tokenizer
from core.engines.worker_text import Key, Token, Work
from core.errors import EngineLoadError, ParameterError, RequestRejected
from core.runtime import Runtime
from core.settings import Settings, load_settings
from core.types import ChatPrompt, Completion, EngineSpec, Message, Priority, Request

installed = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not installed: make llamacpp"
)
STORY = ChatPrompt((Message("user", "Tell me a story about a fox and a hare."),))


# -- places in the memory of keys and values -----------------------------------------------------


def test_a_prompt_is_read_from_where_another_one_differs():
    places = Places(3, 100, can_rewind=True)
    first = places.take([1, 2, 3, 4], 20)
    assert (first.shared, first.source) == (0, None)
    first.place.tokens += [1, 2, 3, 4, 9]

    beside = places.take([1, 2, 3, 5], 20)
    assert (beside.shared, beside.source) == (3, first.place)
    assert beside.place.tokens == [1, 2, 3]

    places.leave(first.place)
    again = places.take([1, 2, 3, 4, 9, 7], 20)
    assert (again.place, again.shared, again.source) == (first.place, 5, None)


def test_the_last_token_of_a_prompt_is_always_read():
    places = Places(2, 100, can_rewind=True)
    places.take([1, 2], 10).place.tokens += [1, 2]
    assert places.take([1, 2], 10).shared == 1


def test_recurrent_models_share_nothing():
    places = Places(2, 100, can_rewind=False)
    places.take([1, 2, 3], 10).place.tokens += [1, 2, 3]
    assert places.take([1, 2, 3], 10).shared == 0


def test_whoever_finds_no_room_waits_and_a_batch_leaves_some():
    places = Places(4, 100, can_rewind=True)
    assert places.take([1], 60, spare=50) is not None  # nobody else is there: a batch may take it all
    assert places.take([2], 30, spare=50) is None
    chat = places.take([2], 30)
    assert chat is not None
    assert places.take([3], 30) is None
    places.leave(chat.place)
    assert places.take([3], 30) is not None


def test_what_is_remembered_goes_oldest_first_when_its_room_is_needed():
    places = Places(3, 100, can_rewind=True)
    old, new = places.take([1], 40).place, places.take([2], 40).place
    old.tokens, new.tokens = [1] * 40, [2] * 40
    places.leave(old), places.leave(new)
    taken = places.take([3], 50)
    assert old in taken.cleared and new not in taken.cleared
    assert (old.tokens, len(new.tokens)) == ([], 40)
    assert places.unused == 60


@given(st.data())
def test_places_never_hold_more_than_there_is(data: st.DataObject) -> None:
    cells = 60
    places, live = Places(4, cells, can_rewind=True), []
    tokens = st.lists(st.integers(0, 2), min_size=1, max_size=20)
    for _ in range(data.draw(st.integers(1, 30))):
        if live and data.draw(st.booleans()):
            places.leave(live.pop(data.draw(st.integers(0, len(live) - 1)))[0])
            continue
        prompt = data.draw(tokens)
        held = [list(place.tokens) for place in places._places]
        taken = places.take(prompt, len(prompt) + 5)
        if taken is None:
            assert live
            continue
        source = taken.source or taken.place
        assert held[source.number][: taken.shared] == prompt[: taken.shared] == taken.place.tokens
        assert taken.shared < len(prompt)
        assert not {place.number for place in taken.cleared} & {place.number for place, _ in live}
        taken.place.tokens = [*prompt, *data.draw(tokens)][: taken.place.reserved]
        live.append((taken.place, prompt))
        for place, own in live:
            assert place.tokens[: len(own)] == own
        idle = sum(len(place.tokens) for place in places._places if place.free)
        assert sum(place.reserved for place in places._places) + idle <= cells


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)), st.integers(0, 30))
def test_common_prefixes(first: list[int], second: list[int], most: int) -> None:
    most = min(most, len(first), len(second))
    length = common_prefix(first, second, most)
    assert first[:length] == second[:length]
    assert length == most or first[length] != second[length]


# -- grammars ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "grammar"),
    [
        (r"^\d{4}-[^x\s]?$", r'([0-9]){4,4} "\U0000002D" ([^x \x09-\x0D]){0,1}'),
        (r"yes|no", r'("y" "e" "s" | "n" "o")'),
        (r"(?:a\.)+?b*", r'("a" "\U0000002E"){1,} ("b"){0,}'),
        (r"\W.", r"[^A-Za-z0-9_] [^\x0A\x0D]"),
        (r"", r'""'),
    ],
)
def test_a_regex_as_a_grammar(pattern: str, grammar: str) -> None:
    assert grammar_of({"regex": pattern}) == f"root ::= {grammar}"


@pytest.mark.parametrize("pattern", [r"(?i)yes", r"(a)\1", r"a(?=b)", r"\bword", r"a^b", "(", r"[\w\W]"])
def test_a_regex_that_no_grammar_says_is_refused(pattern: str) -> None:
    with pytest.raises(RequestRejected, match="no grammar for this regex"):
        grammar_of({"regex": pattern})


def test_choices_are_taken_as_they_are_written():
    choices = ['say "no"', "back\\slash", "two\nlines", "漢字"]
    grammar = grammar_of({"choice": choices})
    assert grammar.count("|") == 3
    assert "\n" not in grammar and "\\U0000005C" in grammar and "\\U00006F22" in grammar


@installed
def test_a_text_in_json_has_no_bare_line_ends():
    (rule,) = (line for line in grammar_of({"json_object": True}).splitlines() if line.startswith("char ::="))
    assert rule.startswith(r'char ::= [^"\\\x7F\x00-\x1F] |')


@installed
def test_a_schema_that_no_grammar_says_is_refused():
    with pytest.raises(RequestRejected, match="no grammar for this schema"):
        grammar_of({"json": {"not": {}}})


# -- the backend, in this process -----------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf() -> Path:
    return embedded.gguf(load_settings(), lambda stage: None)


@pytest.fixture(scope="module")
def backend(gguf: Path) -> Iterator[Any]:
    """Three sequences in 512 tokens of memory, 64 tokens a step; one thread, which waits for no other."""
    from core.engines import llamacpp_backend

    here = replace(machine.describe(), physical_cores=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "describe", lambda: here)
        patch.setattr(llamacpp_backend, "CHAT_SLOTS", 1)
        yield llamacpp_backend.make(
            report=lambda stage: None,
            path=str(gguf),
            max_model_len=256,
            max_num_seqs=2,
            max_num_batched_tokens=64,
            kv_cache_memory_bytes=512 * 23_040,
        )


@pytest.fixture
def fresh(backend: Any) -> Any:
    for place in backend._places.forget_all_idle():
        backend._cut(place.number, 0)
    return backend


def work(backend: Any, text: str, *, priority: int = 0, **params: Any) -> Work:
    ids = tuple(backend._model.encode(text, add_special_tokens=False))
    return Work(prompt_ids=ids, params={"temperature": 0, "max_tokens": 8, **params}, priority=priority)


def answers(backend: Any, works: dict[Key, Work]) -> dict[Key, list[int] | RequestRejected]:
    """The first tokens of each, as many as it asks for."""
    found: dict[Key, Any] = {}
    for key, each in works.items():
        backend.add(key, each)
        found[key] = []
    open_keys = set(works)
    while open_keys:
        for key, token in backend.step():
            if isinstance(token, Token):
                found[key].append(token.token_id)
            else:
                found[key] = token
            if isinstance(token, RequestRejected) or len(found[key]) == works[key].max_tokens:
                backend.drop(key)
                open_keys.discard(key)
    return found


@pytest.fixture
def reads(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """For each step, how many tokens of each sequence were read."""
    steps: list[list[int]] = []
    decode = backend._decode

    def counting(rows: Any) -> Any:
        steps.append([len(tokens) for _, _, tokens, _ in rows])
        return decode(rows)

    monkeypatch.setattr(backend, "_decode", counting)
    return steps


LONG = "The fox and the hare went through the old forest and met a bear, a wolf, two owls and a mouse. " * 6


@installed
@pytest.mark.engine
def test_a_long_prompt_is_read_in_pieces_beside_the_answers_of_others(fresh, reads):
    story = work(fresh, "Once upon a time")
    alone = answers(fresh, {(1, 0): story})
    reads.clear()
    fresh.add((1, 0), work(fresh, "Once upon a time", max_tokens=30))
    fresh.step()
    fresh.add((2, 0), work(fresh, LONG))
    written = [fresh.step() for _ in range(3)]
    assert [sum(each) for each in reads[1:]] == [64, 64, len(work(fresh, LONG).prompt_ids) + 3 - 128]
    assert all((1, 0) in dict(step) for step in written)  # its tokens come while the other is read
    assert (2, 0) in dict(written[-1])
    for key in ((1, 0), (2, 0)):
        fresh.drop(key)
    assert len(alone[1, 0]) == 8


@installed
@pytest.mark.engine
def test_what_prompts_share_is_read_once_also_by_several_answers(fresh, reads):
    first, second = work(fresh, LONG + "The fox"), work(fresh, LONG + "The bear")
    alone = answers(fresh, {(1, 0): first})[1, 0]
    size = len(first.prompt_ids)
    assert sum(map(sum, reads)) == size + 7
    reads.clear()
    answers(fresh, {(2, 0): second})
    assert sum(map(sum, reads)) == len(second.prompt_ids) - size + 1 + 7
    reads.clear()
    for place in fresh._places.forget_all_idle():
        fresh._cut(place.number, 0)
    several = answers(fresh, {(3, index): work(fresh, LONG + "The fox", max_tokens=4) for index in range(3)})
    assert sum(map(sum, reads)) == size + 2 + 3 * 3
    assert [several[3, index] for index in range(3)] == [alone[:4]] * 3


@installed
@pytest.mark.engine
def test_sequences_wait_for_room_and_chats_go_first(fresh):
    """Each may take 200 of 512 tokens: two fit, and a batch leaves 256 to a chat."""
    for number, priority in enumerate((Priority.BATCH, Priority.BATCH, Priority.CHAT)):
        fresh.add((number, 0), work(fresh, f"{number} foxes", priority=priority, max_tokens=197))
    assert {key for key, _ in fresh.step()} == {(2, 0)}
    fresh.drop((2, 0))
    assert {key for key, _ in fresh.step()} == {(0, 0)}
    assert (1, 0) not in dict(fresh.step())
    fresh.drop((0, 0))
    assert {key for key, _ in fresh.step()} == {(1, 0)}
    fresh.drop((1, 0))


@installed
@pytest.mark.engine
def test_an_answer_without_a_next_token_is_refused_alone(fresh):
    choice = {"structured_outputs": {"choice": ["yes"]}, "min_tokens": 6}
    found = answers(fresh, {(1, 0): work(fresh, "Is it so?", **choice), (2, 0): work(fresh, "Once")})
    assert "No token can follow" in found[1, 0].message
    assert len(found[2, 0]) == 8


@installed
@pytest.mark.engine
def test_a_step_that_fails_leaves_nothing_wrong_in_the_memory(fresh, monkeypatch):
    plain = answers(fresh, {(1, 0): work(fresh, LONG)})[1, 0]
    with monkeypatch.context() as patch:
        patch.setattr(fresh._native, "llama_decode", lambda *_: -3)
        fresh.add((2, 0), work(fresh, LONG))
        with pytest.raises(RuntimeError, match="returned -3"):
            fresh.step()
    fresh.drop((2, 0))
    assert fresh._places.unused == 512
    assert answers(fresh, {(3, 0): work(fresh, LONG)})[3, 0] == plain


@installed
@pytest.mark.engine
def test_questions_leave_answers_alone(fresh):
    prompt = work(fresh, LONG).prompt_ids
    alone = answers(fresh, {(1, 0): work(fresh, LONG, max_tokens=6)})[1, 0]
    fresh.add((2, 0), work(fresh, LONG, max_tokens=6))
    ((_, first),) = fresh.step()
    found = fresh.next_logprobs(prompt)
    assert int(found.argmax()) == first.token_id == alone[0]
    options = [work(fresh, text).prompt_ids for text in ("The fox", "Quasar", "Quasars shine")]
    scores = fresh.score(prompt, options)
    assert scores[0] > max(scores[1:])
    rest = []
    while len(rest) < 5:
        rest += [token.token_id for _, token in fresh.step()]
    fresh.drop((2, 0))
    assert [first.token_id, *rest] == alone


@installed
@pytest.mark.engine
def test_scores_are_the_sums_of_the_model_s_own_steps(fresh):
    prompt = list(work(fresh, "The capital of France is").prompt_ids)
    choice = fresh._model.encode(" Paris, of course", add_special_tokens=False)
    total = 0.0
    for place, token in enumerate(choice):
        total += float(fresh.next_logprobs([*prompt, *choice[:place]])[token])
    (score,) = fresh.score(prompt, [tuple(choice)])
    assert score == pytest.approx(total, abs=0.05)


# -- the engine ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    runtime = Runtime(Settings(home=tmp_path_factory.mktemp("llamacpp")))
    runtime.load(EngineSpec(engine="llamacpp", max_model_len=1024, max_num_seqs=4))
    runtime.wait_ready(120)
    yield runtime
    runtime.close()


def ask(runtime: Runtime, prompt: Any, **params: Any) -> Completion:
    request = Request(id="ask", prompt=prompt, params={"temperature": 0, "max_tokens": 60, **params})
    return runtime.run(runtime.engine.complete(request))


@installed
@pytest.mark.engine
def test_it_is_loaded_by_its_settings(runtime):
    info = runtime.engine.info
    assert (info.model, info.dtype, info.max_model_len) == (embedded.EMBEDDED_MODEL, "Q4_1", 1024)
    assert (info.batch_slots, info.max_num_seqs) == (4, 6)
    assert info.kv_cache_tokens == 6 * 1024
    assert info.kv_cache_bytes == 6 * 1024 * 23_040
    assert 90 << 20 < info.weights_bytes < 98 << 20
    assert info.engine_version.startswith("llama-cpp-python ")
    assert set(info.cannot) == {"beam_search", "adapters"}


@installed
@pytest.mark.engine
def test_tokens_and_chats_are_those_of_the_converted_model(runtime, embedded_model):
    """The same model as safetensors, read by transformers."""
    engine, theirs = runtime.engine, Tokenizer("SmolLM2", embedded_model)
    texts = [
        "Hello  world",
        "naïve café — 漢字 😀\n\n\tdef f(x):",
        "<|im_start|>user\nHi<|im_end|>\n",
        "   ",
        "",
    ]
    assert engine.encode(texts) == theirs.encode(texts)
    for ids in engine.encode(texts):
        assert engine.decode(ids) == theirs.decode(ids)
        assert engine.pieces(ids) == theirs.pieces(ids)
    chats = [
        [Message("user", "Hi")],
        [
            Message("system", "Be brief."),
            Message("user", "Hi"),
            Message("assistant", "Hello"),
            Message("user", "x"),
        ],
    ]
    assert engine.render_chat(chats) == theirs.render_chat(chats)


@installed
@pytest.mark.engine
def test_the_distribution_is_nearly_that_of_the_converted_model_in_vllm(runtime, engine_runtime):
    """The weights are the same numbers; their products are rounded elsewhere."""
    for text in ("The capital of France is", "def add(a, b):\n    return"):
        request = Request(id="next", prompt=text)
        ours = np.exp(runtime.run(runtime.engine.next_logprobs(request)))
        theirs = np.exp(engine_runtime.run(engine_runtime.engine.next_logprobs(request)))
        size = min(len(ours), len(theirs))
        assert ours.argmax() == theirs.argmax()
        assert np.abs(ours[:size] - theirs[:size]).sum() / 2 < 0.15


@installed
@pytest.mark.engine
@pytest.mark.parametrize(
    "structure",
    [
        {"choice": ["a fox", 'a "hare"', "a hare\\"]},
        {"regex": r"[A-Z][a-z]{2,5} \d{4}"},
        {"json_object": True},
        {
            "json": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 12},
                    "legs": {"type": "integer"},
                    "kind": {"enum": ["mammal", "bird"]},
                },
                "required": ["name", "legs", "kind"],
                "additionalProperties": False,
            }
        },
    ],
    ids=lambda structure: next(iter(structure)),
)
def test_answers_have_the_structure_asked_for(runtime, structure):
    for seed in (1, 2):
        answer = ask(
            runtime,
            STORY,
            structured_outputs=structure,
            max_tokens=200,
            temperature=0.8,
            seed=seed,
            top_p=0.9,
        )
        assert answer.finish_reason == "stop"
        assert structured.valid(structure, answer.text), answer.text


@installed
@pytest.mark.engine
def test_a_grammar_of_one_s_own(runtime):
    grammar = 'root ::= ("tick" | "tock") (", " ("tick" | "tock")){2}'
    answer = ask(runtime, STORY, structured_outputs={"grammar": grammar})
    assert [each in ("tick", "tock") for each in answer.text.split(", ")] == [True] * 3
    for wrong, said in (
        ("root ::= other", "grammar"),
        ('start ::= "a"', "'root'"),
        ('root ::= root "a"', "left recursion"),
    ):
        with pytest.raises(RequestRejected, match=said):
            ask(runtime, STORY, structured_outputs={"grammar": wrong})


@installed
@pytest.mark.engine
def test_answers_to_one_schema_are_json_that_can_be_read(runtime):
    schema = {"type": "object", "properties": {"animals": {"type": "array", "items": {"type": "string"},
              "maxItems": 3}}, "required": ["animals"]}  # fmt: skip
    answer = ask(runtime, STORY, structured_outputs={"json": schema}, max_tokens=200)
    assert 0 <= len(json.loads(answer.text)["animals"]) <= 3


@installed
@pytest.mark.engine
def test_token_ids_that_the_model_has_not_are_refused(runtime):
    for params in ({"logit_bias": {"49152": 1.0}}, {"allowed_token_ids": [99999]}, {"stop_token_ids": [-1]}):
        with pytest.raises(RequestRejected, match="The model has no token"):
            ask(runtime, STORY, **params)


def failure(settings: Settings, spec: EngineSpec) -> Exception:
    runtime = Runtime(settings)
    try:
        runtime.load(spec)
        with pytest.raises((EngineLoadError, ParameterError)) as raised:
            runtime.wait_ready(60)
        return raised.value
    finally:
        runtime.close()


@installed
@pytest.mark.engine
def test_what_can_t_be_loaded_says_why(settings, gguf, tmp_path):
    whole = gguf.read_bytes()
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(whole.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lemma", 1))
    for spec, said in (
        (EngineSpec(engine="llamacpp", model=str(unknown)), "unknown model architecture: 'lemma'"),
        (EngineSpec(engine="llamacpp", max_model_len=9000), "more than the 8192 tokens"),
        (EngineSpec(engine="llamacpp", kv_cache_memory_bytes=1 << 20), "holds 45 tokens"),
    ):
        error = failure(settings, spec)
        assert said in str(error)
        assert error.hint
