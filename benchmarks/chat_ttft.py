"""What the chat page adds to the time to first token: the page's call against bare AsyncLLM.

    .venv/bin/python benchmarks/chat_ttft.py [--requests 40]

In turns on one engine, nothing else running. Ours: from the page's call
(`Chats.send`: two writes to the catalogue, chat template, tokenizing) until
the first token can be read. Bare: from `AsyncLLM.generate` with the same token
ids, on the same loop, to its first output. Prompts differ from request to
request, so that no prefix is cached beyond the template's.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import embedded, machine
from core.chat import Chats
from core.runtime import Runtime
from core.settings import load_settings
from core.store import Store
from core.types import EngineSpec, Message

PARAMS = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}


def question(number: int) -> str:
    return (
        f"{number * 7919} {number}. Explain in one sentence why the number {number} is interesting, please."
    )


def ours(chats: Chats, text: str) -> float:
    """Seconds from the page's call until there is a token for the page to read."""
    conversation = chats.create()
    started = time.monotonic()
    (message_id,) = chats.send(conversation.conversation_id, text, PARAMS)
    live = chats._live[conversation.conversation_id][message_id]
    live.future.result()  # asking again and again would take the time that is measured
    return live.answer.timing.first_token_s - started


def bare(runtime: Runtime, token_ids: list[int], number: int) -> float:
    """Seconds from AsyncLLM.generate to its first output."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(**PARAMS, output_kind=RequestOutputKind.DELTA)
    vllm = runtime.engine._engine

    async def first() -> float:
        started = time.monotonic()
        seconds = 0.0
        async for _output in vllm.generate({"prompt_token_ids": token_ids}, params, f"bare-{number}"):
            seconds = seconds or time.monotonic() - started
        return seconds

    return runtime.run(first())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=40)
    count = parser.parse_args().requests
    model = embedded.prepare(load_settings(), print)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings().model_copy(update={"home": Path(folder)})
        settings.logs_dir.mkdir()
        runtime = Runtime(settings)
        runtime.load(EngineSpec(model=str(model)))
        engine = runtime.wait_ready()
        store = Store(settings.catalogue_path)
        chats = Chats(runtime, store)
        page, direct = [], []
        for number in range(count + 2):
            text = question(2 * number)
            seconds = ours(chats, text)
            other = engine.render_chat([[Message("user", question(2 * number + 1))]])
            reference = bare(runtime, engine.encode(other)[0], number)
            if number >= 2:  # the first of each compiles and fills caches
                page.append(seconds * 1000)
                direct.append(reference * 1000)
        chats.close()
        runtime.close()
        store.close()
    for name, values in (("page's call", page), ("bare AsyncLLM", direct)):
        p95 = statistics.quantiles(values, n=20)[-1]
        print(f"{name:<14} TTFT median {statistics.median(values):7.1f} ms   p95 {p95:7.1f} ms")
    here = machine.describe()
    difference = statistics.median(page) - statistics.median(direct)
    print(f"difference of medians {difference:.1f} ms ({count} requests each, in turns)")
    print(f"{here.cpu}, {here.cores} cores; {json.dumps(dict(here.versions))}; {dt.date.today()}")


if __name__ == "__main__":
    main()
