"""Headers of weights, whole, by ranges, and broken: files come from outside."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from core.errors import ModelError
from core.models import facts, headers

CONFIG = Path(__file__).parent / "model_configs" / "smollm2-135m.json"


class Counting:
    """Reads ranges as a hub would, and counts what was fetched."""

    def __init__(self, data: bytes) -> None:
        self.data, self.fetched = data, 0

    def __call__(self, start: int, end: int) -> bytes:
        piece = self.data[start:end]
        self.fetched += len(piece)
        return piece


def safetensors(entries: object, *, length: int | None = None, body: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """Written by the gguf package, with a vocabulary long enough not to be kept."""
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "gemma3")
    writer.add_context_length(32_768)
    writer.add_embedding_length(64)
    writer.add_block_count(12)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv([2] * 12)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_sliding_window(512)
    writer.add_token_list([f"token{number}" for number in range(60_000)])
    writer.add_token_scores([0.0] * 60_000)
    writer.add_bool("odd.flag", True)
    writer.add_float64("odd.number", 1.5)
    writer.add_tensor("token_embd.weight", np.zeros((64, 64), dtype=np.float32))
    quantized = np.zeros((64, 64 // 32 * 18), dtype=np.uint8)
    writer.add_tensor("blk.0.ffn_up.weight", quantized, raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_safetensors_header_is_read_by_two_small_ranges(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((1000, 1000), np.float16), "b": np.zeros(7, np.float32)}, path)
    read = Counting(path.read_bytes())
    tensors = headers.read_safetensors(read)
    assert tensors.numbers == {"F16": 1_000_000, "F32": 7}
    assert tensors.total_bytes == 2_000_028
    assert read.fetched < 1000


def test_a_folder_adds_up_its_shards_and_leaves_the_second_copy_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG.read_bytes())
    for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors"):
        save_file({"a": np.zeros((10, 10), np.float16)}, tmp_path / name)
    assert facts.read(tmp_path).weights_bytes == 400
    index = {"metadata": {"total_size": 200}, "weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert facts.read(tmp_path).weights_bytes == 400  # nothing that is looked at has changed
    save_file({"a": np.zeros((20, 10), np.float16)}, tmp_path / "model-1.safetensors")
    assert facts.read(tmp_path).weights_bytes == 400  # now the first shard alone


def test_a_download_under_way_is_as_large_as_its_index_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG.read_bytes())
    index = {
        "metadata": {"total_size": 12345},
        "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"},
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": np.zeros(4, np.float16)}, tmp_path / "x-1.safetensors")
    assert facts.read(tmp_path).weights_bytes == 12345


def test_a_model_without_weights_is_known_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG.read_bytes())
    known = facts.read(tmp_path)
    assert (known.parameters, known.weights_bytes, known.format) == (134_515_008, None, "config")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x01\x02", safetensors({}, length=1 << 60), safetensors({}, length=500),
        safetensors(b"not json"), safetensors(b"[]"), safetensors(b"[" * 100_000), safetensors({"a": 1}),
        safetensors({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 5]}}),
        safetensors({"a": {"dtype": "F16", "shape": [-2], "data_offsets": [0, 4]}}),
        safetensors({"a": {"dtype": "F16", "shape": [2.0], "data_offsets": [0, 4]}}),
        safetensors({"a": {"dtype": "F16", "shape": "22", "data_offsets": [0, 4]}}),
        safetensors({"a": {"dtype": "F17", "shape": [2], "data_offsets": [0, 4]}}),
        safetensors({"a": {"dtype": ["F16"], "shape": [2], "data_offsets": [0, 4]}}),
        safetensors({"a": {"dtype": "F16", "shape": [1] * 99, "data_offsets": [0, 2]}}),
    ],
)  # fmt: skip
def test_broken_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="can't be read"):
        headers.read_safetensors(Counting(data))


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b'{"weight_map": []}', b'{"weight_map": {"a": "../../etc/passwd"}}',
     b'{"weight_map": {"a": "/etc/passwd"}}', b'{"weight_map": {"a": 3}}', b'{"weight_map": {"a": ""}}',
     b'{"weight_map": {"a": "..\\\\up"}}', b'{"weight_map": {"a": ["x"]}}'],
)  # fmt: skip
def test_an_index_names_files_of_its_own_folder_only(index: bytes) -> None:
    with pytest.raises(ModelError):
        headers.read_index(index)


def test_a_gguf_file_tells_its_model(gguf_file: Path) -> None:
    known = facts.read(gguf_file)
    assert (known.architecture, known.layers, known.kv_heads, known.head_dim) == ("gemma3", 12, 2, 32)
    assert (known.context_tokens, known.vocab_size, known.quantization) == (32_768, 60_000, "F32")
    assert [(group.kind, group.layers, group.window) for group in known.attention] == [
        ("full", 2, None), ("sliding", 10, 512),
    ]  # fmt: skip
    assert known.weights_bytes == 64 * 64 * 4 + 64 * 64 // 32 * 18
    assert known.parameters == 2 * 64 * 64


def test_a_split_gguf_file_is_as_large_as_its_parts(gguf_file: Path, tmp_path: Path) -> None:
    first = gguf_file.rename(tmp_path / "big[1]-00001-of-00002.gguf")
    (tmp_path / "big[1]-00002-of-00002.gguf").write_bytes(b"x" * 1000)
    (tmp_path / "other-00002-of-00002.gguf").write_bytes(b"x" * 5000)
    known = facts.read(first)
    assert (known.layers, known.weights_bytes) == (12, first.stat().st_size + 1000)


def test_a_gguf_header_is_fetched_in_few_pieces_and_its_vocabulary_is_not_kept(gguf_file: Path) -> None:
    read = Counting(gguf_file.read_bytes() + b"\0" * 50_000_000)
    header = headers.read_gguf(read)
    assert read.fetched < 4_000_000
    assert header.values["tokenizer.ggml.tokens"] is None
    assert header.lengths["tokenizer.ggml.tokens"] == 60_000
    assert (header.values["odd.flag"], header.values["odd.number"]) == (True, 1.5)


def gguf(*, version: int = 3, tensors: int = 0, values: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


@pytest.mark.parametrize(
    "data",
    [
        b"", b"GGML", gguf(version=1), gguf(tensors=1 << 50), gguf(values=1 << 40),
        gguf(values=1, rest=struct.pack("<Q", 1 << 62)),
        gguf(values=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 0, 1 << 60)),
        gguf(values=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1)),
        gguf(values=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 99, 10_000)),
        gguf(values=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77)),
        gguf(tensors=1, rest=struct.pack("<Q", 1) + b"t" + struct.pack("<I", 9999)),
        gguf(tensors=1, rest=struct.pack("<Q", 1) + b"t" + struct.pack("<IIQ", 0, 12345, 0)),
    ],
)  # fmt: skip
def test_broken_gguf_files_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        headers.read_gguf(Counting(data))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_anywhere_is_a_model_error(data: st.DataObject) -> None:
    whole = _small_gguf()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :]
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    for read in (headers.read_gguf, headers.read_safetensors):
        try:
            read(Counting(damaged))
        except ModelError:
            continue


def _small_gguf() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    values += text("list") + struct.pack("<IIQ", 9, 4, 3) + struct.pack("<III", 1, 2, 3)
    tensors = text("a") + struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
    return gguf(tensors=1, values=2, rest=values + tensors)


def test_a_gguf_file_that_is_no_language_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(_small_gguf())
    with pytest.raises(ModelError, match="no language model"):
        facts.read(tmp_path / "x.gguf")


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model"):
        facts.read(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="no JSON object"):
        facts.read(tmp_path)
