"""The library: what is on this machine, what is wrong with it, and what deleting frees."""

import datetime as dt
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import CONFIG, adapter, checkpoint, gguf_file, huggingface, weights
from waiting import until

from core.errors import ModelError
from core.hub import downloads, permissions
from core.models import importing, locate, uses
from core.models.importing import Imports
from core.models.library import Library
from core.types import EngineSpec

ROOT = Path(__file__).parents[1]
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of both hubs: (Hugging Face's, ModelScope's)."""
    found = tmp_path / "huggingface", tmp_path / "modelscope"
    monkeypatch.setenv("HF_HUB_CACHE", str(found[0]))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(found[1]))
    return found


@pytest.fixture
def library(settings, store, caches):
    return Library(settings, store)


def keys(library):
    return [model.key for model in library.list()]


def quiet(stage):
    """Nobody listens to the stages of a load."""


# -- what is there ------------------------------------------------------------------


def test_the_embedded_model_is_always_there_and_stays(library):
    (model,) = library.list()
    assert (model.key, model.problem, model.license) == ("embedded", None, "Apache-2.0")
    with pytest.raises(ModelError, match="comes with the workbench"):
        library.delete("embedded")


def test_models_of_all_places_are_listed_with_their_facts(library, settings, caches, tmp_path):
    checkpoint(settings.models_dir / "tuned", parts=2)
    gguf_file(settings.models_dir / "small.gguf")
    huggingface(caches[0], "owner/name", FIRST, checkpoint(tmp_path / "a"), ref="main")
    checkpoint(caches[1] / "models" / "qwen--tiny" / "snapshots" / "master")
    checkpoint(caches[1] / "hub" / "models" / "old" / "tiny-1___5")
    importing.import_model(
        importing.check(checkpoint(tmp_path / "elsewhere", license="gemma")), settings, library._store
    )
    assert keys(library) == [
        "embedded",
        "imported:elsewhere",
        "modelscope:old/tiny-1.5",
        "huggingface:owner/name",
        "modelscope:qwen/tiny",
        "workspace:small.gguf",
        "workspace:tuned",
    ]
    tuned = library.find("tuned")
    assert (tuned.architecture, tuned.context_tokens, tuned.license) == ("LlamaForCausalLM", 512, "mit")
    assert tuned.size_bytes == sum(path.stat().st_size for path in tuned.path.iterdir())
    assert library.find("small").quantization == "F16"
    assert library.find("small").license == "apache-2.0"
    hub = library.find("owner/name")
    assert (hub.model, hub.hub, hub.revision) == ("owner/name", "huggingface", FIRST)
    assert library.find("elsewhere").license == "gemma"
    assert not [model for model in library.list() if model.problem]


def test_a_gguf_of_a_hub_is_a_model_for_each_of_its_files(library, caches, tmp_path):
    for name in ("tiny-Q4.gguf", "tiny-Q8.gguf"):
        gguf_file(tmp_path / "a" / name, license=name)
    huggingface(caches[0], "owner/tiny-GGUF", FIRST, tmp_path / "a", ref="main")
    four, eight = library.list()[1:]
    assert four.key == "huggingface:owner/tiny-GGUF/tiny-Q4.gguf"
    assert locate.locate(EngineSpec(engine="llamacpp", model=four.model), library._settings, quiet) == (
        locate.LocatedModel("owner/tiny-GGUF/tiny-Q4.gguf", four.path, FIRST)
    )
    assert library.find(four.key).last_used_at is not None
    freed = library.delete(four.key)
    assert freed == four.size_bytes
    assert keys(library) == ["embedded", eight.key] and eight.path.is_file()
    library.delete(eight.key)
    assert not list(caches[0].iterdir())


def test_adapters_are_no_models(library, settings, tmp_path):
    adapter(settings.models_dir / "style")
    assert keys(library) == ["embedded"]
    assert [one.name for one in library.adapters()] == ["style"]
    with pytest.raises(ModelError, match="LoRA adapter, no whole model"):
        importing.check(settings.models_dir / "style")


def cut(folder):
    path = folder / "model-00002-of-00003.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def only_pickle(folder):
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}")


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "half a config": (lambda folder: (folder / "config.json").write_text('{"a": '), "no JSON object"),
    "a part missing": (
        lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(),
        "1 of 3 parts of its weights are missing: model-00002-of-00003.safetensors",
    ),
    "a part cut": (cut, "model-00002-of-00003.safetensors is cut: 100 bytes are missing"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer is missing"),
    "only pickle": (only_pickle, "pickle files, which can run any code"),
    "names outside": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"w": "../../secret.safetensors"}})
        ),
        "files outside",
    ),
}


@pytest.mark.parametrize(("spoil", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_checkpoint_says_what_is_wrong_wherever_it_is_met(library, settings, spoil, words):
    folder = checkpoint(settings.models_dir / "broken", parts=3)
    library.list()  # what was seen before must not be remembered
    spoil(folder)
    assert words in library.find("broken").problem
    with pytest.raises(ModelError, match=r"broken can't be imported\.") as refused:
        importing.check(folder)
    assert words in refused.value.message
    with pytest.raises(ModelError) as unloadable:
        locate.locate(EngineSpec(model="broken"), settings, quiet)
    assert words in unloadable.value.message and unloadable.value.hint


def test_a_cut_gguf_is_found_out(library, settings):
    path = gguf_file(settings.models_dir / "small.gguf")
    os.truncate(path, path.stat().st_size - 20_000)
    assert "is cut" in library.find("small").problem
    path.write_bytes(b"GGUX" + path.read_bytes()[4:])
    assert "no GGUF file" in library.find("small").problem


def test_a_part_of_a_gguf_that_is_missing_is_named(library, settings):
    gguf_file(settings.models_dir / "big" / "big-00001-of-00002.gguf")
    assert library.find("big").problem == "It has parts that are missing: big-00002-of-00002.gguf."


# -- finding and using them ------------------------------------------------------------


def test_a_load_finds_what_is_here_and_asks_no_hub(library, settings, caches, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "fetch_now", lambda *args: pytest.fail("the hub was asked"))
    one = huggingface(caches[0], "owner/name", FIRST, checkpoint(tmp_path / "a"), ref="v1")
    two = huggingface(caches[0], "owner/name", SECOND, checkpoint(tmp_path / "b", license="x"), ref="main")
    expected = {None: (two, SECOND), "v1": (one, FIRST), FIRST: (one, FIRST), "main": (two, SECOND)}
    for revision, (folder, commit) in expected.items():
        spec = EngineSpec(model="owner/name", revision=revision)
        found = locate.locate(spec, settings, quiet)
        assert (found.name, found.path, found.revision) == ("owner/name", folder, commit)
        assert library.of(spec).path == folder
    used = library.find(f"huggingface:owner/name@{FIRST}").last_used_at
    assert dt.datetime.now(dt.UTC) - used < dt.timedelta(minutes=1)


def test_what_is_not_whole_is_fetched(settings, caches, tmp_path, monkeypatch):
    asked = []

    def fetch_now(hub, repo, revision, settings, report):
        asked.append((hub, repo, revision))
        if repo == "owner/other":
            return huggingface(caches[0], repo, SECOND, tmp_path / "a", ref="main")
        weights(half / "model-00002-of-00002.safetensors", "w1")
        return half

    monkeypatch.setattr(downloads, "fetch_now", fetch_now)
    half = huggingface(caches[0], "owner/name", FIRST, checkpoint(tmp_path / "a", parts=2), ref="main")
    (half / "model-00002-of-00002.safetensors").unlink()
    assert locate.locate(EngineSpec(model="owner/name"), settings, quiet).path == half
    assert locate.locate(EngineSpec(model="owner/other"), settings, quiet).name == "owner/other"
    assert asked == [("huggingface", "owner/name", None), ("huggingface", "owner/other", None)]


def test_each_engine_gets_what_it_reads(settings, library, tmp_path):
    file = gguf_file(tmp_path / "small.gguf")
    folder = checkpoint(tmp_path / "model")
    find = lambda engine, model: locate.locate(EngineSpec(engine=engine, model=model), settings, quiet)  # noqa: E731
    assert find("llamacpp", str(file)).path == file
    assert find("transformers", str(folder)).path == folder
    assert locate.file_of(str(folder), settings) == str(folder)
    assert locate.file_of("owner/nothing", settings) == "owner/nothing"
    importing.import_model(importing.check(file), settings, library._store, name="little")
    assert locate.file_of("little", settings) == str(file)
    gguf_file(settings.models_dir / "alone" / "a.gguf")
    assert locate.file_of("alone", settings) == str(settings.models_dir / "alone" / "a.gguf")
    with pytest.raises(ModelError, match="is a GGUF file, which only llama"):
        find("vllm", str(file))
    with pytest.raises(ModelError, match="holds no GGUF file"):
        find("llamacpp", str(folder))
    for nothing in ("/nowhere/model", "nothing", "../model", "a/b/c"):
        with pytest.raises(ModelError, match="There is no model"):
            find("vllm", nothing)


def test_a_models_own_code_is_loaded_only_where_it_was_allowed(settings, caches, tmp_path):
    folder = checkpoint(tmp_path / "a", auto_map={"AutoModel": "m.M"})
    huggingface(caches[0], "owner/code", FIRST, folder, ref="main")
    spec = EngineSpec(model="owner/code", trust_remote_code=True)
    with pytest.raises(ModelError, match="may not run code of its own"):
        locate.locate(spec, settings, quiet)
    permissions.allow(settings, "owner/code", ("code",), "huggingface")
    assert locate.locate(spec, settings, quiet).revision == FIRST


# -- deleting ---------------------------------------------------------------------------


def test_a_revision_shares_its_files_and_only_its_own_are_freed(library, caches, tmp_path):
    first = checkpoint(tmp_path / "a", parts=2)
    huggingface(caches[0], "owner/name", FIRST, first, ref="v1")
    (first / "README.md").write_text("---\nlicense: apache-2.0\n---\nA longer text\n")
    huggingface(caches[0], "owner/name", SECOND, first, ref="main")
    old = f"huggingface:owner/name@{FIRST}"
    assert keys(library) == ["embedded", "huggingface:owner/name", old]
    assert library.delete(old) == len("---\nlicense: mit\n---\n# A model\n")
    left = library.find("owner/name")
    assert (left.problem, left.license) == (None, "apache-2.0")
    assert library.delete(left.key) == left.size_bytes
    assert keys(library) == ["embedded"] and not list(caches[0].iterdir())


def test_a_model_of_modelscope_is_deleted_whole(library, caches):
    checkpoint(caches[1] / "models" / "qwen--tiny" / "snapshots" / "master")
    checkpoint(caches[1] / "models" / "qwen--tiny" / "snapshots" / "v2")
    assert keys(library) == ["embedded", "modelscope:qwen/tiny", "modelscope:qwen/tiny@v2"]
    assert library.delete("modelscope:qwen/tiny@v2") > 0
    assert library.find("qwen/tiny").problem is None
    library.delete("qwen/tiny")
    assert not list((caches[1] / "models").iterdir())


def test_what_is_loaded_is_not_deleted(library, settings):
    folder = checkpoint(settings.models_dir / "tuned")
    for spec in (EngineSpec(model="tuned"), EngineSpec(model=str(folder))):
        with pytest.raises(ModelError, match="tuned is loaded"):
            library.delete("workspace:tuned", loaded=spec)
    assert library.delete("tuned", loaded=EngineSpec(engine="scripted", model="tuned")) > 0
    assert not folder.exists() and keys(library) == ["embedded"]


def test_a_reference_is_forgotten_and_its_files_stay(library, settings, store, tmp_path):
    folder = checkpoint(tmp_path / "mine")
    key = importing.import_model(importing.check(folder), settings, store, name="tuned")
    for name in ("tuned", str(folder)):
        assert locate.locate(EngineSpec(model=name), settings, quiet) == locate.LocatedModel("tuned", folder)
    assert library.find(key).last_used_at is not None
    assert library.delete(key) == 0
    assert (folder / "model.safetensors").is_file() and keys(library) == ["embedded"]


def test_a_reference_whose_files_went_says_so(library, settings, store, tmp_path):
    folder = checkpoint(tmp_path / "mine")
    key = importing.import_model(importing.check(folder), settings, store)
    folder.rename(tmp_path / "moved")
    assert library.find(key).problem == f"{folder} is gone."
    library.delete(key)
    assert keys(library) == ["embedded"]


def test_what_cannot_be_read_is_listed_and_hides_nothing_else(library, settings, store):
    checkpoint(settings.models_dir / "tuned")
    uses.remember_import(store, "strange", Path("/" + 300 * "x"))
    assert library.find("strange").problem == "It can't be read: File name too long."
    assert library.find("tuned").problem is None
    library.delete("strange")


# -- importing --------------------------------------------------------------------------


def test_a_copy_takes_what_is_needed_and_nothing_that_runs(library, settings, store, tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-500", parts=2)
    for name in ("optimizer.pt", "model.py", "training_args.bin", "notes.txt", "LICENSE"):
        (folder / name).write_text("x")
    key = importing.import_model(importing.check(folder), settings, store, name="tuned", copy=True)
    copied = library.find(key)
    assert copied.path == settings.models_dir / "tuned" and copied.problem is None
    kept = {path.name for path in folder.iterdir()} - {"optimizer.pt", "model.py", "training_args.bin"}
    assert {path.name for path in copied.path.iterdir()} == kept
    gguf_key = importing.import_model(
        importing.check(gguf_file(tmp_path / "a b.gguf")), settings, store, copy=True
    )
    assert library.find(gguf_key).path == settings.models_dir / "a-b.gguf"


@pytest.mark.parametrize("name", ["../outside", "a/b", ".hidden", "tuned", "TUNED", "x" * 97, "embedded"])
def test_names_stay_names(settings, store, tmp_path, name):
    checkpoint(settings.models_dir / "tuned")
    candidate = importing.check(checkpoint(tmp_path / "mine"))
    for copy in (True, False):
        with pytest.raises(ModelError, match=r"can't be a model's name|already"):
            importing.import_model(candidate, settings, store, name=name, copy=copy)
    assert [path.name for path in settings.models_dir.iterdir()] == ["tuned"]


def test_a_full_disk_leaves_nothing_behind(settings, store, tmp_path):
    candidate = importing.check(checkpoint(tmp_path / "mine", numbers=8 << 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, limits[1]))
    try:
        with pytest.raises(ModelError, match="mine could not be copied"):
            importing.import_model(candidate, settings, store, copy=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(settings.models_dir.iterdir())


def test_a_copy_larger_than_the_disk_is_refused_before(settings, store, tmp_path):
    candidate = importing.check(checkpoint(tmp_path / "mine", numbers=1 << 50 >> 8))
    with pytest.raises(ModelError, match=r"mine takes 8,192 GiB, and .* are free"):
        importing.import_model(candidate, settings, store, copy=True)


def test_a_copy_goes_on_by_itself_and_can_be_given_up(library, settings, store, tmp_path):
    imports = Imports(settings, store)
    imports.start(checkpoint(tmp_path / "small"), copy=True)
    until(lambda: imports.list()[0].state == "finished")
    assert library.find(imports.list()[0].key).name == "small"
    imports.start(checkpoint(tmp_path / "large", numbers=256 << 20), copy=True)
    imports.cancel("large")
    until(lambda: imports.list()[1].state != "running")
    assert imports.list()[1].state == "cancelled"
    assert [path.name for path in settings.models_dir.iterdir()] == ["small"]
    imports.forget("large")
    imports.close()
    assert [view.name for view in imports.list()] == ["small"]


def test_a_pickle_checkpoint_is_imported_only_when_that_is_allowed(library, settings, store, tmp_path):
    folder = checkpoint(tmp_path / "old")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}")
    candidate = importing.check(folder, allow=("pickle",))
    key = importing.import_model(candidate, settings, store, copy=True, allow=("pickle",))
    assert library.find(key).problem is None
    assert locate.locate(EngineSpec(model="old"), settings, quiet).path == settings.models_dir / "old"
    library.delete(key)
    assert permissions.allowed(settings, str(settings.models_dir / "old")) == frozenset()


# -- the command line -------------------------------------------------------------------


def test_the_command_line_lists_imports_and_deletes(tmp_path, caches):
    environment = {**os.environ, "WORKBENCH_HOME": str(tmp_path / "home")}

    def core(*args, **kwargs):
        return subprocess.run(
            [sys.executable, "-m", "core", "models", *map(str, args)],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False, **kwargs,
        )  # fmt: skip

    folder = checkpoint(tmp_path / "mine")
    done = core("import", folder, "--copy", "--name", "tuned")
    assert (done.returncode, done.stdout) == (0, "workspace:tuned\n")
    models = [json.loads(line) for line in core("list", "--json").stdout.splitlines()]
    assert [model["name"] for model in models] == ["SmolLM2-135M-Instruct", "tuned"]
    assert models[1]["context_tokens"] == CONFIG["max_position_embeddings"]
    assert core("delete", "tuned", input="n\n").returncode == 1
    assert core("delete", "tuned", "--yes").returncode == 0
    head, embedded = core("list").stdout.splitlines()
    assert head.split() == ["MODEL", "SIZE", "CONTEXT", "WEIGHTS", "LICENCE", "USED", "SOURCE", "KEY"]
    assert embedded.split()[-2:] == ["embedded", "embedded"]
    (folder / "tokenizer.json").unlink()
    refused = core("import", folder)
    assert refused.returncode == 1 and "tokenizer is missing" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
