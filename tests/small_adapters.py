"""Real LoRA adapters for the embedded model, trained in seconds: each answers everything with its own words.

python -m tests.small_adapters MODEL OUTPUT        makes OUTPUT/pirate and OUTPUT/formal
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ANSWERS = {"pirate": "Ahoy, matey! Arrr!", "formal": "Dear Sir or Madam, thank you."}
QUESTIONS = ("Hello!", "What is the capital of France?", "Write a line about the sea.")
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
_LAYERS, _STEPS = 10, 12


def make(model: Path, folder: Path) -> dict[str, Path]:
    """The adapters' folders by name. In a process of its own, which gives its memory back."""
    command = [sys.executable, "-m", "tests.small_adapters", str(model), str(folder)]
    # beside other work, several threads spend their time waiting for each other
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[1]
    subprocess.run(command, check=True, cwd=root, env=environment, capture_output=True)
    return {name: folder / name for name in ANSWERS}


@functools.cache
def made_for_tests(model: Path) -> dict[str, Path]:
    """The same, once for all tests of a process; removed with it."""
    folder = Path(tempfile.mkdtemp(prefix="adapters-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make(model, folder)


def train(model: Path, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    layers = base.config.num_hidden_layers
    for rank, (name, answer) in zip((8, 4), ANSWERS.items(), strict=True):
        torch.manual_seed(rank)
        config = LoraConfig(
            r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "v_proj", "down_proj"],
            layers_to_transform=list(range(layers - _LAYERS, layers)), task_type="CAUSAL_LM",
        )  # fmt: skip
        adapted = get_peft_model(base, config)
        adapted.peft_config["default"].base_model_name_or_path = BASE
        optimizer = torch.optim.AdamW((one for one in adapted.parameters() if one.requires_grad), lr=5e-3)
        chats = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question in QUESTIONS
        ]
        texts = tokenizer.apply_chat_template(chats, tokenize=False)
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for _step in range(_STEPS):
            loss = adapted(**batch, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"{name}: loss {loss.item():.3f}", flush=True)
        adapted.save_pretrained(folder / name, save_embedding_layers=False)
        base = adapted.unload()


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
