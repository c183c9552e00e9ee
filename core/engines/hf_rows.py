"""Sequences that are stepped together: their padding and what the model keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.engines.worker_text import Key

if TYPE_CHECKING:
    import torch


class Rows:
    """`cache` is transformers' DynamicCache. `mask`: (sequences, length), 0 where there is padding."""

    def __init__(self, keys: list[Key], mask: torch.Tensor, cache: Any) -> None:
        self.keys = keys
        self.mask = mask
        self.cache = cache

    def keep(self, rows: Sequence[int]) -> None:
        import torch

        index = torch.tensor(rows, device=self.mask.device)
        self.keys = [self.keys[row] for row in rows]
        self.mask = self.mask[index]
        self.cache.batch_select_indices(index)
        # the longest one may have gone: what is padding in all others goes with it
        spare = int(self.mask.argmax(-1).min())
        if spare:
            self.mask = self.mask[:, spare:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[..., spare:, :], layer.values[..., spare:, :]

    def join(self, other: Rows) -> None:
        """Take the sequences of `other` in, padded on the left to one length."""
        import torch

        width = max(self.mask.shape[1], other.mask.shape[1])

        def padded(tensor: torch.Tensor, axis: int) -> torch.Tensor:
            missing = list(tensor.shape)
            missing[axis] = width - tensor.shape[axis]
            return torch.cat([tensor.new_zeros(missing), tensor], axis)

        self.keys += other.keys
        self.mask = torch.cat([padded(self.mask, 1), padded(other.mask, 1)])
        for ours, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            ours.keys = torch.cat([padded(ours.keys, -2), padded(theirs.keys, -2)])
            ours.values = torch.cat([padded(ours.values, -2), padded(theirs.values, -2)])
