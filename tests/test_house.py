"""The house's rules: who may import whom. Checked on the syntax tree, so nothing is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "core").rglob("*.py"))
PAGES = [ROOT / "Home.py", *sorted((ROOT / "pages").rglob("*.py"))]
# each heavy library has one room, and even there it is imported inside a function
HEAVY = {
    "vllm": {
        "core/api/vllm_app.py",
        "core/engines/vllm.py",
        "core/engines/vllm_beams.py",
        "core/engines/vllm_distribution.py",
        "core/engines/vllm_info.py",
        "core/engines/vllm_lora.py",
        "core/engines/vllm_params.py",
        "core/engines/vllm_scheduler.py",
        "core/engines/vllm_start.py",
        "core/engines/vllm_stats.py",
    },
    "huggingface_hub": {"core/hub/huggingface.py", "core/models/caches.py"},
    "modelscope_hub": {"core/hub/modelscope.py"},
    "llama_cpp": {"core/engines/llamacpp_grammar.py", "core/engines/llamacpp_model.py"},
    "peft": {"core/adapters/merge_worker.py"},
    "torch": {
        "core/adapters/merge_worker.py",
        "core/bench/device_rates_worker.py",
        "core/embedded.py",
        "core/engines/hf_backend.py",
        "core/engines/hf_rows.py",
        "core/engines/hf_sampling.py",
    },
    "transformers": {
        "core/adapters/merge_worker.py",
        "core/engines/hf_backend.py",
        "core/engines/llamacpp.py",
        "core/engines/vllm_start.py",
        "core/engines/vllm_models.py",
        "core/engines/tokenizer.py",
        "core/embedded.py",
    },
}
PURE = {
    "core/api/cors.py",
    "core/bench/metrics.py",
    "core/bench/knee.py",
    "core/bench/outlook.py",
    "core/bench/arrivals.py",
    "core/bench/words.py",
    "core/bench/roofline.py",
    "core/bench/differences.py",
    "core/bench/figures.py",
    "core/named_values.py",
    "core/sampling.py",
    "core/sampling_rules.py",
    "core/sampling_values.py",
    "core/engines/llamacpp_memory.py",
    "core/engines/worker_text.py",
    "core/microscope.py",
    "core/reasoning.py",
    "core/snippets.py",
    "core/planning/planner.py",
    "core/planning/planner_table.py",
    "core/planning/planner_tree.py",
    "core/models/fit.py",
    "core/models/fit_compare.py",
    "core/models/fit_sizes.py",
    "core/models/kv_cache.py",
    "core/models/parameters.py",
}


def imports(path):
    """(module, is at the top of the file) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CORE, ids=name)
def test_core_knows_no_user_interface(path):
    assert not [module for module, _top in imports(path) if module.split(".")[0] in ("streamlit", "pages")]


@pytest.mark.parametrize("path", CORE + PAGES, ids=name)
def test_heavy_libraries_are_imported_in_their_own_room_and_late(path):
    for module, top in imports(path):
        library = module.split(".")[0]
        if library in HEAVY:
            assert name(path) in HEAVY[library], f"{name(path)} imports {module}"
            assert not top, f"{name(path)} imports {module} before it is needed"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_pages_share_only_parts(path):
    for module, _top in imports(path):
        if module.startswith("pages.") and module != "pages.parts":
            assert module.startswith("pages.parts"), f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", [path for path in CORE if name(path) in PURE], ids=name)
def test_pure_modules_do_no_io(path):
    allowed = (
        "core.bench",
        "core.engines.vllm_settings",
        "core.errors",
        "core.machine",
        "core.models",
        "core.named_values",
        "core.sampling",
        "core.structured",
        "core.types",
        "core.planning.planner",
        "json",
        "math",
        "numpy",
        "re",
        "collections",
        "dataclasses",
        "difflib",
        "functools",
        "itertools",
        "typing",
        "__future__",
    )
    found = [module for module, _top in imports(path) if module != "core"]
    assert not [module for module in found if not module.startswith(allowed)]


@pytest.mark.parametrize("path", [path for path in PAGES if path.parent.name == "pages"], ids=name)
def test_a_page_is_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
