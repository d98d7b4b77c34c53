"""Makes graphs at random, a third of whose nodes are Transpose."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (2, 3, 4, 5)
_KINDS = ("join", "constant", "concat", "slice", "pad", "reduce", "squeeze", "unsqueeze", "softmax", "reshape")
_MORE_KINDS = ("argmax", "gate", "shape", "flat", "conv", "unary", "split")


@dataclass
class _Maker:
    chosen: random.Random
    numbers: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    values: list[tuple[str, tuple[int, ...]]] = field(default_factory=lambda: [("x", SHAPE)])

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, inputs: list[str], *shapes: list[int], **attributes: object) -> None:
        names = [f"t{len(self.nodes)}_{place}" for place in range(len(shapes))]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        self.values += [(name, tuple(shape)) for name, shape in zip(names, shapes, strict=True)]

    def axis(self, axis: int, rank: int) -> int:
        return axis - (rank if self.chosen.random() < 0.5 else 0)

    def alike(self, shape: tuple[int, ...]) -> str:
        return self.chosen.choice([name for name, other in self.values if other == shape])


def random_model(seed: int) -> onnx.ModelProto:
    """Returns a model of one input ``x``, float32 (2, 3, 4, 5); its first dimension is free for every other seed."""
    producer = _Maker(random.Random(seed), np.random.default_rng(seed))
    for _ in range(producer.chosen.randint(4, 22)):
        name, shape = producer.chosen.choice(producer.values[-4:])
        if shape and producer.chosen.random() < 0.3:
            perm = list(range(len(shape)))
            producer.chosen.shuffle(perm)
            if len(shape) == 4 and producer.chosen.random() < 0.7:
                perm = producer.chosen.choice(([0, 2, 3, 1], [0, 3, 1, 2]))
            producer.add("Transpose", [name], [shape[axis] for axis in perm], perm=perm)
        elif shape:
            _add_other(producer, producer.chosen.choice((*_KINDS, *_MORE_KINDS)), name, shape)
    read = {name for node in producer.nodes for name in node.input}
    returned = [name for name, _ in producer.values[1:] if name not in read or producer.chosen.random() < 0.05]
    first = "batch" if seed % 2 else SHAPE[0]
    graph = helper.make_graph(
        producer.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [first, *SHAPE[1:]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in returned],
        producer.stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _add_other(producer: _Maker, kind: str, name: str, shape: tuple[int, ...]) -> None:
    chosen, rank, dims = producer.chosen, len(shape), list(shape)
    axis = chosen.randrange(rank)
    match kind:
        case "unary":
            producer.add(chosen.choice(["Relu", "Sigmoid", "Neg"]), [name], dims)
        case "join":
            producer.add(chosen.choice(["Add", "Mul", "Max"]), [name, producer.alike(shape)], dims)
        case "constant":
            other = [dim if chosen.random() < 0.6 else 1 for dim in dims][chosen.choice((0, axis)) :]
            factor = producer.constant(producer.numbers.normal(size=other).astype(np.float32))
            producer.add(
                chosen.choice(["Add", "Mul"]), [name, factor] if chosen.random() < 0.7 else [factor, name], dims
            )
        case "concat" if np.prod(shape) < 2000:
            dims[axis] *= 2
            producer.add("Concat", [name, producer.alike(shape)], dims, axis=producer.axis(axis, rank))
        case "slice":
            dims[axis] = max(1, dims[axis] - 1)
            ends = [producer.constant(np.array([value])) for value in (0, dims[axis], producer.axis(axis, rank))]
            producer.add("Slice", [name, *ends], dims)
        case "pad":
            pads = [chosen.randint(0, 1) for _ in range(2 * rank)]
            dims = [dim + pads[place] + pads[rank + place] for place, dim in enumerate(dims)]
            producer.add("Pad", [name, producer.constant(np.array(pads))], dims)
        case "reduce":
            axes, kept = sorted(chosen.sample(range(rank), chosen.randint(1, rank))), chosen.randint(0, 1)
            left = [1 if place in axes else dim for place, dim in enumerate(dims) if kept or place not in axes]
            if chosen.random() < 0.5:
                producer.add("ReduceSum", [name, producer.constant(np.array(axes))], left, keepdims=kept)
            else:
                producer.add("ReduceMax", [name], left, axes=axes, keepdims=kept)
        case "squeeze" if dims[axis] == 1 and rank > 1:
            del dims[axis]
            producer.add("Squeeze", [name, producer.constant(np.array([axis]))], dims)
        case "unsqueeze" if rank < 5:
            dims.insert(axis, 1)
            producer.add("Unsqueeze", [name, producer.constant(np.array([producer.axis(axis, rank + 1)]))], dims)
        case "softmax":
            producer.add("Softmax", [name], dims, axis=producer.axis(axis, rank))
        case "reshape":
            dims = [dim for dim in dims if dim != 1] or [1]
            for _ in range(chosen.randint(0, 2)):
                dims.insert(chosen.randint(0, len(dims)), 1)
            target = [-1 if place == axis and chosen.random() < 0.5 else dim for place, dim in enumerate(dims)]
            if -1 not in target and dims[0] == shape[0] and chosen.random() < 0.5:
                target[0] = 0
            producer.add("Reshape", [name, producer.constant(np.array(target))], dims)
        case "gate":
            axes = sorted(chosen.sample(range(rank), chosen.randint(1, rank)))
            producer.add(
                "ReduceMax", [name], [1 if place in axes else dim for place, dim in enumerate(dims)], axes=axes
            )
            producer.add("Mul", [name, producer.values[-1][0]], dims)
        case "flat":
            dims = [dims[0], int(np.prod(dims[1:]))]
            producer.add("Reshape", [name, producer.constant(np.array(dims))], dims)
        case "argmax" if rank > 1:
            kept = chosen.randint(0, 1)
            dims[axis : axis + 1] = [1] * kept
            producer.add("ArgMax", [name], dims, axis=axis, keepdims=kept)
            producer.add("Cast", [producer.values.pop()[0]], dims, to=TensorProto.FLOAT)
        case "shape":
            producer.add("Shape", [name], [rank])
            producer.add("Cast", [producer.values.pop()[0]], [rank], to=TensorProto.FLOAT)
        case "conv" if rank == 4:
            weights = producer.constant(producer.numbers.normal(size=(3, dims[1], 1, 1)).astype(np.float32))
            producer.add("Conv", [name, weights], [dims[0], 3, *dims[2:]])
        case "split" if dims[axis] > 1:
            parts = [dims[axis] // 2, dims[axis] - dims[axis] // 2]
            shapes = [[*dims[:axis], part, *dims[axis + 1 :]] for part in parts]
            producer.add("Split", [name, producer.constant(np.array(parts))], *shapes, axis=axis)
