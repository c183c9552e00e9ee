"""Which files of a repository are taken, and which are refused."""

import pytest

from core.errors import HubError
from core.hub import permissions
from core.hub.choosing import choose, demand, ggufs, suggested_gguf
from core.hub.repositories import RepoFile, RepoFiles, check_names


def repo(*paths, **more):
    files = tuple(RepoFile(path=path, size_bytes=len(path)) for path in paths)
    return RepoFiles(hub="huggingface", repo="org/model", revision=None, commit=None, files=files, **more)


def taken(found, **arguments):
    return [file.path for file in choose(found, **arguments).taken]


def refused(found, **arguments):
    return {file.path: reason for file, reason in choose(found, **arguments).refused}


def test_weights_configuration_tokenizer_and_card_are_taken_and_nothing_else():
    found = repo(
        "README.md", "LICENSE", "config.json", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "onnx/model.onnx",
        "original/consolidated.00.pth", "onnx/config.json", "additional_chat_templates/tools.jinja", "a.gguf",
    )  # fmt: skip
    assert taken(found) == [
        "README.md", "config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
    ]  # fmt: skip


def test_the_same_weights_are_not_taken_twice():
    assert taken(repo("consolidated.safetensors", "model.safetensors")) == ["model.safetensors"]
    assert taken(repo("consolidated.safetensors", "params.json")) == [
        "consolidated.safetensors",
        "params.json",
    ]


def test_pickle_is_never_taken_beside_safetensors():
    found = repo("model.safetensors", "pytorch_model.bin", "sub/x.pt")
    assert taken(found, allowed={"pickle"}) == ["model.safetensors"]
    assert set(refused(found, allowed={"pickle"})) == {"pytorch_model.bin", "sub/x.pt"}
    assert "safetensors are taken instead" in refused(found)["pytorch_model.bin"]
    assert taken(found, patterns=["*.bin"], allowed={"pickle"}) == []


def test_pickle_alone_needs_permission():
    found = repo("config.json", "pytorch_model.bin", "training_args.bin")
    assert taken(found) == ["config.json"]
    with pytest.raises(HubError, match="pickle only"):
        demand(found, choose(found))
    assert taken(found, allowed={"pickle"}) == ["config.json", "pytorch_model.bin"]
    demand(found, choose(found, allowed={"pickle"}))


def test_code_needs_permission_and_is_not_missed_where_it_is_not_needed():
    found = repo("config.json", "model.safetensors", "modeling_x.py", own_code=True)
    assert "modeling_x.py" in refused(found)
    demand(found, choose(found))
    assert "modeling_x.py" in taken(found, allowed={"code"})


def test_one_gguf_model_is_taken_with_all_its_parts():
    found = repo(
        "m-Q8_0.gguf",
        "m-Q4_K_M-00001-of-00002.gguf",
        "m-Q4_K_M-00002-of-00002.gguf",
        "mmproj-f16.gguf",
        "x.json",
    )
    assert {name: len(files) for name, files in ggufs(found).items()} == {"m-Q8_0": 1, "m-Q4_K_M": 2}
    assert suggested_gguf(found) == "m-Q4_K_M"
    assert taken(found) == ["m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf"]
    assert taken(found, patterns=["m-Q8_0.gguf"]) == ["m-Q8_0.gguf"]
    assert suggested_gguf(repo("small.gguf", "a-larger-one.gguf")) == "small"
    assert suggested_gguf(repo("model.safetensors")) is None


@pytest.mark.parametrize(
    ("found", "patterns", "said"),
    [
        (repo("LICENSE"), (), "no files that a model is loaded from"),
        (repo("README.md", "config.json"), (), "no weights"),
        (repo("model.safetensors"), ("*.gguf",), r"no files that match \*\.gguf"),
        (repo("model.safetensors", "x.py"), ("*.py",), "is refused"),
    ],
)
def test_nothing_to_take_says_why(found, patterns, said):
    with pytest.raises(HubError, match=said):
        demand(found, choose(found, patterns), patterns)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (" Qwen/Qwen3-0.6B ", "Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "Qwen/Qwen3-0.6B"),
        ("https://modelscope.cn/models/Qwen/Qwen3-0.6B/files", "Qwen/Qwen3-0.6B"),
        ("gpt2", "gpt2"),
    ],
)
def test_a_model_may_be_named_by_its_web_address(text, name):
    assert check_names("huggingface", text, "refs/pr/1") == (name, "refs/pr/1")


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a/..", "a b/c", "/etc/passwd", "a/b\nc", "-x/y"])
def test_names_that_are_no_models_are_refused(name):
    with pytest.raises(HubError):
        check_names("modelscope", name, None)


def test_permissions_are_for_one_model_of_one_hub(settings):
    permissions.allow(settings, "org/a", {"code"}, "huggingface")
    permissions.allow(settings, "org/a", {"code", "pickle"}, "huggingface")
    permissions.allow(settings, "/models/mine", {"code"})
    assert permissions.allowed(settings, "org/a", "huggingface") == {"code", "pickle"}
    assert permissions.allowed(settings, "org/b", "huggingface") == frozenset()
    assert permissions.allowed(settings, "org/a") == frozenset()
    assert permissions.allowed(settings, "/models/mine") == {"code"}
    permissions.forget(settings, "org/a", "huggingface")
    assert permissions.allowed(settings, "org/a", "huggingface") == frozenset()
