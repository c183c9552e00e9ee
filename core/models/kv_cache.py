"""The KV cache as vLLM lays it out: blocks of tokens, shared by groups of layers. Pure arithmetic.

vLLM's v1/core/kv_cache_utils.py (0.26 to 0.33) puts layers that keep the same into groups of one size, so
that a block of the pool serves any group. A request takes blocks of every group: for a full layer as many
as it has tokens, for one with a window no more than the window and what is being computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.models.facts import Attention, ModelFacts

GPU_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """`block_bytes`: one block in all layers of a group, on one device. `groups`: their number by what
    their layers see. `token_bytes`: one token in all layers, before any window lets go of it."""

    block_tokens: int
    block_bytes: int
    token_bytes: int
    groups: tuple[tuple[Attention, int], ...]
    in_flight_tokens: int

    def blocks(self, tokens: int) -> int:
        """Blocks of one request of so many tokens."""
        return sum(number * self._blocks(group, tokens) for group, number in self.groups)

    def _blocks(self, group: Attention, tokens: int) -> int:
        if group.kind == "sliding" and group.window:
            kept = min(group.window - 1 + self.in_flight_tokens, tokens)
            return -(-kept // self.block_tokens) + 1  # a window may begin inside a block
        if group.kind == "chunked" and group.window:
            tokens = min(group.window + self.in_flight_tokens, tokens)
        return -(-tokens // self.block_tokens)

    def request_bytes(self, tokens: int) -> int:
        """Memory of one request of so many tokens, on one device."""
        return self.blocks(tokens) * self.block_bytes

    def requests(self, cache_bytes: int, tokens: int) -> float:
        """How many requests of so many tokens a cache of this size holds."""
        blocks = self.blocks(tokens)
        return cache_bytes // self.block_bytes / blocks if blocks else float("inf")

    def longest(self, cache_bytes: int, most: int) -> int:
        """The most tokens, up to `most`, that one request may have; 0 where not one fits."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.request_bytes(middle) <= cache_bytes:
                low = middle
            else:
                high = middle - 1
        return low


def layout(
    facts: ModelFacts,
    *,
    number_bytes: float,
    block_tokens: int = GPU_BLOCK_TOKENS,
    in_flight_tokens: int = 0,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
) -> CacheLayout:
    """`number_bytes`: of one key or value. Key and value heads are divided by `tensor_parallel`, and
    copied where there are fewer; a latent is copied to every device. Layers are divided by
    `pipeline_parallel`."""
    kept = [
        (group, -(-group.layers // pipeline_parallel)) for group in facts.attention if group.kind != "state"
    ]
    if not kept:
        return CacheLayout(
            block_tokens=block_tokens, block_bytes=1, token_bytes=0, groups=(), in_flight_tokens=0
        )
    fewest, most = min(layers for _, layers in kept), max(layers for _, layers in kept)
    size = most if most < 1.5 * fewest else fewest
    token = max(_token_bytes(group, number_bytes, tensor_parallel) for group, _ in kept)
    return CacheLayout(
        block_tokens=block_tokens,
        block_bytes=max(1, round(size * block_tokens * token)),
        token_bytes=round(
            sum(layers * _token_bytes(group, number_bytes, tensor_parallel) for group, layers in kept)
        ),
        groups=tuple((group, -(-layers // size)) for group, layers in kept),
        in_flight_tokens=in_flight_tokens,
    )


def plain_layout(token_bytes: int, block_tokens: int) -> CacheLayout:
    """Of a model whose layers all keep all of a request."""
    everything = Attention(kind="full", layers=1)
    return CacheLayout(
        block_tokens=block_tokens,
        block_bytes=token_bytes * block_tokens,
        token_bytes=token_bytes,
        groups=((everything, 1),),
        in_flight_tokens=0,
    )


def _token_bytes(group: Attention, number_bytes: float, tensor_parallel: int) -> float:
    """One token in one layer, on one device."""
    if group.kind == "latent":
        return group.head_dim * number_bytes
    return 2 * max(1, group.kv_heads // tensor_parallel) * group.head_dim * number_bytes
