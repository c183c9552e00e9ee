"""Models of real shapes with random weights: their speed is real, their text is noise.

    python benchmarks/gpu/models.py TOKENIZER_FOLDER OUT [q7b q05b]

TOKENIZER_FOLDER holds tokenizer.json and, for chats, chat_template.jinja. Writes OUT/q7b (Qwen2.5-7B's
shape, 14 GB) and OUT/q05b (Qwen2.5-0.5B's, 1 GB), in bfloat16. Needs torch and transformers, and a GPU
with room for the larger one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

# hidden, MLP, layers, heads, KV heads, tied
SHAPES = {"q7b": (3584, 18944, 28, 28, 4, False), "q05b": (896, 4864, 24, 14, 2, True)}
_BESIDE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def make(name: str, tokenizer: Path, out: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    hidden, mlp, layers, heads, kv_heads, tied = SHAPES[name]
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    config = Qwen2Config(
        vocab_size=-(-len(vocabulary) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder = out / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for beside in _BESIDE:
        if (tokenizer / beside).exists():
            shutil.copy(tokenizer / beside, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(SHAPES))
    options = parser.parse_args()
    for name in options.names:
        started = time.monotonic()
        print(f"{make(name, options.tokenizer, options.out)}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
