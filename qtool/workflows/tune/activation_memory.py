"""How many samples go through a model at once, and how many are held, by what its activations take."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import onnx_ir as ir

from qtool.analysis.fed_sizes import fed_sizes
from qtool.analysis.lifetimes import Lifetime, memory_use
from qtool.calib.specs import Feed

# What a run may give out at once where every tensor is watched.
_LARGEST_RUN_BYTES = 256 << 20
# What may be held of all samples where a graph is walked through.
_LARGEST_HELD_BYTES = 384 << 20
# What the float model gives out for the samples that decide.
_LARGEST_OUTPUTS_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationMemory:
    """What the activations of one sample take; 0 where nobody knows.

    Attributes:
        all_bytes: of all tensors together.
        crossing_bytes: of what is read behind a node and was made before it, at the node with the most of that.
        output_bytes: of the model's outputs.
    """

    all_bytes: int = 0
    crossing_bytes: int = 0
    output_bytes: int = 0

    @staticmethod
    def of(model: ir.Model, feed: Feed) -> ActivationMemory:
        """Follows the shapes through ``model``, which is left as it is and does not run, from one batch."""
        lifetimes = memory_use(model.graph, fed_sizes(model, feed)).lifetimes
        outputs = {value.name for value in model.graph.outputs}
        first = next(iter(feed.values()))
        samples = max(int(first.shape[0]) if first.ndim else 1, 1)
        return ActivationMemory(
            all_bytes=sum(entry.nbytes for entry in lifetimes if entry.made_by is not None) // samples,
            crossing_bytes=_crossing_bytes(lifetimes) // samples,
            output_bytes=sum(entry.nbytes for entry in lifetimes if entry.tensor in outputs) // samples,
        )

    def batch_size(self, usual: int) -> int:
        """Returns how many samples go through the model at once, up to ``usual``, and at least one."""
        return max(min(usual, _LARGEST_RUN_BYTES // max(self.all_bytes, 1)), 1)

    def held_samples(self, wanted: int, *, graphs: int = 1) -> int:
        """Returns how many samples are held, up to ``wanted``, where ``graphs`` go through a graph at the same time."""
        return max(min(wanted, _LARGEST_HELD_BYTES // max(graphs * self.crossing_bytes, 1)), 1)

    def evaluation_samples(self, wanted: int) -> int:
        """Returns how many samples decide between results, up to ``wanted``, whose outputs are held all the while."""
        return max(min(wanted, _LARGEST_OUTPUTS_BYTES // max(self.output_bytes, 1)), 1)


UNKNOWN_MEMORY = ActivationMemory()


def _crossing_bytes(lifetimes: tuple[Lifetime, ...]) -> int:
    changes: dict[int, int] = {}
    for entry in lifetimes:
        # An input is there before the first node.
        first = entry.made_at + (entry.made_by is not None)
        changes[first] = changes.get(first, 0) + entry.nbytes
        changes[entry.last_used_at + 1] = changes.get(entry.last_used_at + 1, 0) - entry.nbytes
    return max(accumulate(changes[place] for place in sorted(changes)), default=0)
