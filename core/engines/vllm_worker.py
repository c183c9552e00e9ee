"""What is asked of vLLM's workers: becomes a part of their class, in their processes."""

from __future__ import annotations

from typing import Any


class WeightsReport:
    """Named as vLLM's `worker_extension_cls`; its methods are called by `collective_rpc`."""

    model_runner: Any

    def workbench_weights_bytes(self) -> int:
        """Memory of this worker's weights, as they were made ready: quantized, sharded, shared ones once."""
        model = self.model_runner.get_model()
        tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
        counted = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return counted + sum(map(_packed_bytes, model.modules()))


def _packed_bytes(layer: Any) -> int:
    """Of a linear layer whose weight a CPU keeps in a form of its own, with an empty one in its place."""
    weight = getattr(layer, "weight", None)
    if not hasattr(layer, "cpu_linear") or weight is None or weight.numel():
        return 0
    rows = getattr(layer, "output_size_per_partition", layer.output_size)
    columns = getattr(layer, "input_size_per_partition", layer.input_size)
    return rows * columns * weight.element_size()
