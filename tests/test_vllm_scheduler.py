"""The engine's scheduler while somebody chats: vLLM's own, on a small cache, without a model's answers."""

import os
from types import SimpleNamespace

import pytest

from core.engines import vllm_scheduler
from core.engines.vllm_scheduler import AFTER_CHAT_S, FIRST_LOT, LEAST_LOT, STEP_S, paced
from core.engines.vllm_settings import CHAT_SLOTS
from core.types import Priority

pytestmark = pytest.mark.engine
STEP_TOKENS = 4096


class Clock(SimpleNamespace):
    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(now=1000.0)
    monkeypatch.setattr(vllm_scheduler, "time", clock)
    return clock


@pytest.fixture(scope="module")
def config(embedded_model):
    from vllm import AsyncEngineArgs

    before = dict(os.environ)
    config = AsyncEngineArgs(
        model=str(embedded_model),
        max_num_seqs=64,
        max_num_batched_tokens=STEP_TOKENS,
        max_model_len=8192,
        scheduling_policy="priority",
        scheduler_cls=f"{paced.__module__}.{paced.__name__}",
        block_size=32,
        enforce_eager=True,
    ).create_engine_config()
    for name in set(os.environ) - set(before):  # vLLM sets a dozen, among them LD_PRELOAD
        del os.environ[name]
    os.environ.update(before)
    return config


@pytest.fixture
def engine(config, clock):
    return Engine(config, clock)


class Engine:
    """A scheduler that is driven as vLLM's core does it; each answer token is 5."""

    def __init__(self, config, clock, *, blocks=2000):
        import torch
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(32, sha256)
        config.cache_config.num_gpu_blocks = blocks
        layer = FullAttentionSpec(block_size=32, num_kv_heads=1, head_size=8, dtype=torch.float32)
        groups = [KVCacheGroupSpec(["layer"], layer)]
        cache = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)
        self.scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=32,
            hash_block_size=32,
            log_stats=True,
        )
        self.scheduler.holds_batch = True  # as on a GPU
        self.clock = clock
        self.number = 0

    def ask(self, priority, tokens, answer=1000, **params):
        from vllm import SamplingParams
        from vllm.v1.request import Request

        self.number += 1
        request = Request(
            request_id=f"{priority.name}-{self.number}",
            prompt_token_ids=[100 + (self.number * 7919 + place) % 30000 for place in range(tokens)],
            sampling_params=SamplingParams(max_tokens=answer, ignore_eos=True, **params),
            pooling_params=None,
            priority=int(priority),
            block_hasher=self.hasher,
        )
        self.scheduler.add_request(request)
        return request.request_id

    def step(self, seconds=STEP_S):
        """One step of the engine; what it read of each request's prompt and wrote, in tokens."""
        from vllm.v1.outputs import ModelRunnerOutput

        plan = self.scheduler.schedule()
        assert len(self.scheduler.running) <= self.scheduler.max_num_running_reqs == 64
        self.clock.now += seconds
        names = list(plan.num_scheduled_tokens)
        requests = [self.scheduler.requests[name] for name in names]
        written = [[5] if each.num_computed_tokens >= each.num_tokens else [] for each in requests]
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: place for place, name in enumerate(names)},
            sampled_token_ids=written,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self.scheduler.update_from_output(plan, output)
        return dict(plan.num_scheduled_tokens)

    def end(self, name):
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)


def of(kind, plan):
    return sum(tokens for name, tokens in plan.items() if name.startswith(kind.name))


def test_without_a_chat_a_step_reads_all_it_can(engine):
    for _ in range(40):
        engine.ask(Priority.BATCH, 200)
    assert sum(engine.step().values()) == STEP_TOKENS


def test_a_step_with_a_chats_prompt_reads_none_of_the_batch_and_the_next_ones_a_lot(engine):
    rows = [engine.ask(Priority.BATCH, 200) for _ in range(60)]
    first = engine.step()
    assert len(first) == 21  # the last one in part
    chat = engine.ask(Priority.CHAT, 300)
    with_chat = engine.step()
    # the chat's whole prompt and a token for each row that was read whole
    assert with_chat == {chat: 300} | dict.fromkeys(rows[:20], 1)
    after = engine.step()
    assert after[chat] == 1
    assert sum(after.values()) == FIRST_LOT + 21
    assert after[rows[20]] == 200 - first[rows[20]]


def test_on_a_cpu_a_chats_prompt_is_read_beside_a_lot_of_the_batch(engine):
    engine.scheduler.holds_batch = False
    for _ in range(60):
        engine.ask(Priority.BATCH, 200)
    chat = engine.ask(Priority.CHAT, 300)
    plan = engine.step()
    assert plan[chat] == 300 and sum(plan.values()) == FIRST_LOT


def test_a_long_document_half_read_makes_way(engine):
    document = engine.ask(Priority.BATCH, 8000)
    assert engine.step() == {document: STEP_TOKENS}
    chat = engine.ask(Priority.CHAT, 100)
    assert engine.step() == {chat: 100}
    assert engine.step() == {chat: 1, document: FIRST_LOT}


def test_some_time_after_the_last_answer_the_batch_has_the_engine_to_itself(engine, clock):
    for _ in range(60):
        engine.ask(Priority.BATCH, 1000, answer=1)
    chat = engine.ask(Priority.CHAT, 100)
    engine.step()
    engine.end(chat)
    clock.now += AFTER_CHAT_S - 2 * STEP_S
    assert sum(engine.step().values()) == FIRST_LOT
    clock.now += AFTER_CHAT_S
    assert sum(engine.step().values()) == STEP_TOKENS


def test_programs_and_comparisons_shorten_no_step(engine):
    engine.ask(Priority.COMPARE, 100)
    engine.ask(Priority.API, 100)
    for _ in range(40):
        engine.ask(Priority.BATCH, 200)
    assert sum(engine.step().values()) == STEP_TOKENS


def test_a_lot_is_what_keeps_steps_at_their_time(engine):
    engine.ask(Priority.CHAT, 100)
    for _ in range(3000):
        engine.ask(Priority.BATCH, 1000, answer=1)
    engine.step()
    for _ in range(60):
        engine.step(seconds=2 * STEP_S)
    assert engine.scheduler.lot == LEAST_LOT
    for _ in range(200):
        engine.step(seconds=STEP_S / 10)
    assert engine.scheduler.lot == STEP_TOKENS


def test_a_step_that_was_not_full_says_nothing_of_the_lot(engine):
    engine.ask(Priority.CHAT, 100)
    engine.ask(Priority.BATCH, 100)
    for _ in range(10):
        engine.step(seconds=5 * STEP_S)
    assert engine.scheduler.lot == FIRST_LOT


def test_a_chat_that_finds_no_room_in_the_cache_does_not_hold_the_batch_for_ever(config, clock):
    engine = Engine(config, clock, blocks=130)  # 4,128 tokens
    document = engine.ask(Priority.BATCH, 4100, answer=2)
    engine.step()
    chat = engine.ask(Priority.CHAT, 1000, answer=2)
    plans = [engine.step() for _ in range(10)]
    assert of(Priority.CHAT, plans[0]) == 0
    assert any(document in plan for plan in plans)
    assert sum(plan.get(chat, 0) for plan in plans) >= 1000


def test_rows_that_wait_inside_leave_places_to_chats_and_follow_at_once(engine):
    for _ in range(80):
        engine.ask(Priority.BATCH, 32, answer=3)
    first = engine.step()
    assert len(first) == 64 - CHAT_SLOTS
    chats = [engine.ask(Priority.CHAT, 40) for _ in range(CHAT_SLOTS)]
    assert set(chats) < set(engine.step())
    engine.step()  # the first rows have their three tokens
    assert of(Priority.BATCH, engine.step()) == 32 * 24


@pytest.mark.parametrize("holds_batch", [True, False])
def test_a_row_that_took_the_place_of_a_chat_which_never_came_does_not_end_the_engine(engine, holds_batch):
    from vllm.sampling_params import StructuredOutputsParams

    engine.scheduler.holds_batch = holds_batch
    for _ in range(80):
        engine.ask(Priority.BATCH, 32)
    engine.step()
    # its grammar is never compiled here
    chat = engine.ask(Priority.CHAT, 40, structured_outputs=StructuredOutputsParams(choice=["a"]))
    assert chat not in engine.step()
    engine.end(chat)
    assert of(Priority.BATCH, engine.step()) >= 64 - CHAT_SLOTS


def test_the_slots_are_never_more_than_there_are(engine):
    for _ in range(70):
        engine.ask(Priority.BATCH, 3000, answer=50)
    for _ in range(5):
        engine.step()
    for _ in range(70):
        engine.ask(Priority.CHAT, 50, answer=3)
    for _ in range(30):
        engine.step()
