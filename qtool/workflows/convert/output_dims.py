"""Corrects the declared output shapes of a graph by those observed in runs of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qtool.calib.specs import Array, Feed
from qtool.formats.torch.example_inputs import InputSpec


@dataclass(frozen=True, slots=True)
class _Run:
    """Keeps the shapes of one run: ``sizes`` of the free dimensions, and of every output."""

    sizes: Mapping[str, int]
    outputs: Mapping[str, tuple[int, ...]]


class SeenShapes:
    """Records the shapes of every run of a graph."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Takes the graph's inputs, with a name for each free dimension."""
        self._specs = specs
        self._runs: list[_Run] = []

    def watched(self, run: Callable[[Feed], Mapping[str, Array]]) -> Callable[[Feed], Mapping[str, Array]]:
        """Returns ``run`` with recording of the shapes."""

        def watched(feed: Feed) -> Mapping[str, Array]:
            result = run(feed)
            sizes = {
                dim: feed[spec.name].shape[axis]
                for spec in self._specs
                for axis, dim in enumerate(spec.dims)
                if isinstance(dim, str)
            }
            self._runs.append(_Run(sizes, {name: array.shape for name, array in result.items()}))
            return result

        return watched

    def name_free_dims(self, model: ir.Model) -> None:
        """Names the free dimensions of outputs that had the length of one free dimension of an input in every run."""
        for value in model.graph.outputs:
            if self._fits_rank(value) and value.shape is not None:
                dims = [
                    dim if isinstance(dim, int) else self._name(value, axis) for axis, dim in enumerate(value.shape)
                ]
                value.shape = ir.Shape(dims)

    def free_wrong_dims(self, model: ir.Model) -> None:
        """Frees the dimensions with other lengths than declared, and infers inner shapes again."""
        wrong = False
        for value in model.graph.outputs:
            if not self._fits_rank(value) or value.shape is None:
                continue
            for axis, dim in enumerate(value.shape):
                if self._contradicted(value, axis, dim if isinstance(dim, int) else dim.value):
                    value.shape = ir.Shape(
                        [self._name(value, axis) if other == axis else one for other, one in enumerate(value.shape)]
                    )
                    wrong = True
        if wrong:
            _infer_shapes_anew(model)

    def _fits_rank(self, value: ir.Value) -> bool:
        shape = value.shape
        return shape is not None and all(len(run.outputs[value.name or ""]) == len(shape) for run in self._runs)

    def _contradicted(self, value: ir.Value, axis: int, dim: int | str | None) -> bool:
        said = (dim if isinstance(dim, int) else run.sizes.get(dim or "") for run in self._runs)
        return any(
            length is not None and length != run.outputs[value.name or ""][axis]
            for length, run in zip(said, self._runs, strict=True)
        )

    def _name(self, value: ir.Value, axis: int) -> str | None:
        same = [
            name
            for name in (self._runs[0].sizes if self._runs else ())
            if all(run.sizes[name] == run.outputs[value.name or ""][axis] for run in self._runs)
        ]
        return same[0] if len(same) == 1 else None


def _infer_shapes_anew(model: ir.Model) -> None:
    from onnx_ir.passes.common import ShapeInferencePass

    from qtool.formats.library_noise import quiet_libraries

    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    with quiet_libraries():
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
