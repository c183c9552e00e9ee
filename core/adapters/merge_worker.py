"""The process that merges: torch, and a whole model, in a memory that ends with it.

    {"base": folder, "adapter": folder, "output": folder}       one JSON line on stdin
    {"stage": "Merging", "share": 0.4}                          lines on stdout; share only while it writes
    {"error": "what failed", "hint": "what to do"}              or a last line like this, and exit code 1

It ends when its stdin closes: when the process that wants the result is gone.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

_KEPT = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "chat_template*", "generation_config.json", "LICENSE*",
)  # fmt: skip
_LOOK_EVERY_S = 0.3
_out = sys.stderr


def main() -> int:
    """Merge as stdin says; gives the exit code."""
    global _out
    _out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer of ours
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        merge(Path(asked["base"]), Path(asked["adapter"]), Path(asked["output"]))
    except Exception as error:
        _say(_explained(error))
        return 1
    return 0


def merge(base: Path, adapter: Path, output: Path) -> None:
    """Write the model in `base` with the adapter added to its weights, and its tokenizer, to `output`."""
    _say({"stage": "Loading the model"})
    import torch
    import transformers
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    transformers.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    _say({"stage": "Merging"})
    with torch.inference_mode():
        adapted = PeftModel.from_pretrained(model, str(adapter), use_safetensors=True)
        merged = adapted.merge_and_unload(safe_merge=True)  # a weight that is no number ends it
    output.mkdir()
    expected = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    written = threading.Event()
    threading.Thread(target=_watch, args=(output, expected, written), daemon=True).start()
    try:
        merged.save_pretrained(output)
    finally:
        written.set()
    for pattern in _KEPT:
        for path in base.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, output / path.name)


def _watch(output: Path, expected: int, written: threading.Event) -> None:
    while not written.wait(_LOOK_EVERY_S):
        size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
        _say({"stage": "Writing", "share": min(1.0, size / max(expected, 1))})


def _explained(error: Exception) -> dict[str, str]:
    said = " ".join(str(error).split())[:400] or type(error).__name__
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if is_full or "No space left" in said:
        return {"error": "The disk is full.", "hint": "Free some space, and merge again."}
    if isinstance(error, MemoryError) or "not enough memory" in said:
        return {"error": "There is too little memory.", "hint": "Unload the engine, and merge again."}
    return {"error": said, "hint": "Check that the adapter was made for this model."}


def _say(answer: dict[str, Any]) -> None:
    _out.write(json.dumps(answer) + "\n")
    _out.flush()


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
