"""Hold counted parameters against transformers' own models of the same configs.

    python benchmarks/fit_check.py [CONFIG_JSON ...]

Without arguments: all of tests/model_configs. transformers makes each model on the meta device, which takes
no memory, so that even DeepSeek-V3 is counted in seconds. Prints both counts, and the KV cache of a token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.models import facts, kv_cache  # noqa: E402


def transformers_count(config: dict[str, Any]) -> int:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    for name in ("auto_map", "quantization_config"):
        config.pop(name, None)
    text = transformers.AutoConfig.for_model(**config).get_text_config()
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(text).num_parameters()


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "tests" / "model_configs").glob("*.json"))
    print(f"{'model':<20}{'counted':>18}{'transformers':>18}{'difference':>12}{'KV bytes a token':>18}")
    for path in paths:
        config = json.loads(path.read_text())
        known = facts.from_config(config)
        theirs, ours = transformers_count(config), known.parameters or 0
        per_token = kv_cache.layout(known, number_bytes=2).token_bytes
        print(f"{path.stem:<20}{ours:>18,}{theirs:>18,}{ours - theirs:>12,}{per_token:>18,}")


if __name__ == "__main__":
    main()
