"""Questions to documents: rows in file order against planned order, with room for all of them and for few.

    python benchmarks/gpu/documents.py MODEL [--documents 100] [--tokens 1500] [--questions 20]
        [--kv-share 0.11]

Every document is asked every question; rows are shuffled. `--kv-share` is the part of all documents that the
limited cache holds. One engine for each cache; runs in turns, end to end, its prefixes forgotten before.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from workbench import GREEDY, opened, say, say_conditions, texts, write_table

from core.types import EngineSpec


def kv_bytes_per_token(model: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    head = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head * 2  # bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--output", type=int, default=16)
    parser.add_argument("--kv-share", type=float, default=0.11)
    parser.add_argument("--caches", nargs="+", choices=("limited", "whole"), default=["limited", "whole"])
    options = parser.parse_args()
    say_conditions()
    documents = texts(options.model, options.documents, options.tokens, 5)
    questions = texts(options.model, options.documents * options.questions, 30, 6)
    rows = [
        {"document": document, "question": questions[number * options.questions + which]}
        for number, document in enumerate(documents)
        for which in range(options.questions)
    ]
    random.Random(7).shuffle(rows)
    whole = options.documents * options.tokens * kv_bytes_per_token(options.model)
    params = {**GREEDY, "max_tokens": options.output}
    for cache in options.caches:
        limited = int(whole * options.kv_share) if cache == "limited" else None
        spec = EngineSpec(model=str(options.model), max_model_len=4096, kv_cache_memory_bytes=limited)
        seconds = {}
        with opened(spec) as bench, tempfile.TemporaryDirectory() as temporary:
            warm = write_table(Path(temporary) / "warm.jsonl", rows[:100])
            bench.finish(bench.start(warm, "{{ document }}\n\n{{ question }}", params))
            table = write_table(Path(temporary) / "documents.jsonl", rows)
            for order in ("planned", "file", "planned", "file")[: 2 if cache == "limited" else 4]:
                bench.forget_prefixes()
                started = time.monotonic()
                run = bench.start(
                    table, "{{ document }}\n\n{{ question }}", params, reorder=order == "planned"
                )
                figures = bench.finish(run)
                took = time.monotonic() - started
                seconds[order] = min(took, seconds.get(order, took))
                say(what="documents", cache=cache, order=order, seconds=took, **figures)
        say(what="ratio", cache=cache, planned_s=seconds["planned"], file_s=seconds["file"],
            ratio=seconds["file"] / seconds["planned"])  # fmt: skip


if __name__ == "__main__":
    main()
