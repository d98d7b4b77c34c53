"""Batch size and number of held samples, limited by the memory of the activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import onnx_ir as ir

from qtool.analysis.fed_sizes import fed_sizes
from qtool.analysis.lifetimes import Lifetime, memory_use
from qtool.calib.specs import Feed, batch_length
from qtool.graph.tensor_sizes import TensorSize

# Outputs of one run where every tensor is observed.
_LARGEST_RUN_BYTES = 256 << 20
# Tensors held for all samples where a graph runs in segments.
_LARGEST_HELD_BYTES = 384 << 20
# The float model's outputs for the evaluation samples.
_LARGEST_OUTPUTS_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationMemory:
    """Memory of the activations of one sample; 0 where unknown.

    Attributes:
        all_bytes: of all tensors together.
        crossing_bytes: of the tensors produced before a node and read after it, at the node where that is largest.
        output_bytes: of the model's outputs.
    """

    all_bytes: int = 0
    crossing_bytes: int = 0
    output_bytes: int = 0

    @staticmethod
    def of(model: ir.Model, feed: Feed, sizes: Mapping[str, TensorSize] | None = None) -> ActivationMemory:
        """Propagates the shapes of one batch through ``model``, which is not modified and does not run.

        ``sizes`` are what ``fed_sizes`` returns, where that is known.
        """
        lifetimes = memory_use(model.graph, fed_sizes(model, feed) if sizes is None else sizes).lifetimes
        outputs = {value.name for value in model.graph.outputs}
        samples = max(batch_length(feed), 1)
        return ActivationMemory(
            all_bytes=sum(entry.nbytes for entry in lifetimes if entry.made_by is not None) // samples,
            crossing_bytes=_crossing_bytes(lifetimes) // samples,
            output_bytes=sum(entry.nbytes for entry in lifetimes if entry.tensor in outputs) // samples,
        )

    def batch_size(self, usual: int) -> int:
        """Returns the batch size, up to ``usual``, and at least one."""
        return max(min(usual, _LARGEST_RUN_BYTES // max(self.all_bytes, 1)), 1)

    def held_samples(self, wanted: int, *, graphs: int = 1) -> int:
        """Returns for how many samples, up to ``wanted``, tensors can be held while ``graphs`` run in segments."""
        return max(min(wanted, _LARGEST_HELD_BYTES // max(graphs * self.crossing_bytes, 1)), 1)

    def evaluation_samples(self, wanted: int) -> int:
        """Returns how many evaluation samples, up to ``wanted``, have outputs that fit into memory."""
        return max(min(wanted, _LARGEST_OUTPUTS_BYTES // max(self.output_bytes, 1)), 1)


UNKNOWN_MEMORY = ActivationMemory()


def _crossing_bytes(lifetimes: tuple[Lifetime, ...]) -> int:
    changes: dict[int, int] = {}
    for entry in lifetimes:
        # An input exists before the first node.
        first = entry.made_at + (entry.made_by is not None)
        changes[first] = changes.get(first, 0) + entry.nbytes
        changes[entry.last_used_at + 1] = changes.get(entry.last_used_at + 1, 0) - entry.nbytes
    return max(accumulate(changes[place] for place in sorted(changes)), default=0)
