"""Small models as they lie on a disk: whole, and broken in the ways that downloads and copies break them."""

import hashlib
import json
import struct
from pathlib import Path

import gguf
import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


def weights(path, name="w", numbers=1024):
    """One tensor of `numbers` bfloat16 zeros; a sparse file, however large."""
    header = json.dumps({name: {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}})
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        file.truncate(8 + len(header) + 2 * numbers)


def checkpoint(folder, *, parts=1, numbers=1024, license="mit", **config):
    """A folder that a model is loaded from, with its weights in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n# A model\n")
    if parts == 1:
        weights(folder / "model.safetensors", numbers=numbers)
        return folder
    names = [f"model-{number:05d}-of-{parts:05d}.safetensors" for number in range(1, parts + 1)]
    for number, name in enumerate(names):
        weights(folder / name, f"w{number}", numbers)
    index = {"metadata": {}, "weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def gguf_file(path, license="apache-2.0"):
    """A GGUF file of a llama with one tensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_context_length(512)
    writer.add_license(license)
    writer.add_tensor("token_embd.weight", np.zeros((256, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter(folder):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    weights(folder / "adapter_model.safetensors")
    return folder


def huggingface(cache, repo, commit, folder, ref=None):
    """Put `folder` into a Hugging Face cache as one revision of a repository, as huggingface_hub does."""
    home = Path(cache) / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    for file in folder.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        if not blob.exists():
            blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../..") / "blobs" / blob.name)
    if ref:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / ref).write_text(commit)
    return snapshot
