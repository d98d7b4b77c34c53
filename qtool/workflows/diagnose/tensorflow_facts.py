"""Describes TensorFlow models for ``inspect``, without TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from qtool.formats.tensorflow import keras_config, tensorflow_kinds, tensorflow_outline
from qtool.formats.tensorflow.hdf5_outline import Hdf5Array
from qtool.formats.tensorflow.keras_weights import check_keras_weights, read_keras_weights
from qtool.workflows.diagnose.model_facts import ProgramFacts, TensorFacts

_IMAGE_AXES = 4


def tensorflow_facts(path: Path, kind: str) -> tuple[ProgramFacts | None, list[TensorFacts]]:
    """Returns the program, None for weights alone, and the weights where they can be read without TensorFlow.

    Raises:
        FormatError: the model is damaged.
    """
    if kind == tensorflow_kinds.KERAS_WEIGHTS:
        check_keras_weights(path)
        return None, _weights(read_keras_weights(path, kind) or ())
    if kind in (tensorflow_kinds.KERAS, tensorflow_kinds.KERAS_H5):
        return _keras(path, kind)
    if kind == tensorflow_kinds.GRAPH_DEF:
        outline = tensorflow_outline.read_graph_def(path)
        signature = tensorflow_outline.DEFAULT_SIGNATURE
    else:
        outline = tensorflow_outline.read_saved_model(path)
        signature = outline.signature
    ends = outline.signatures[signature]
    others = sorted(set(outline.signatures) - {signature})
    tensors = [
        TensorFacts(name=one.name, dtype=one.dtype, shape=one.dims, elements=one.elements, nbytes=one.nbytes)
        for one in outline.tensors
    ]
    program = ProgramFacts(
        producer=f"TensorFlow {outline.version}".strip(),
        inputs=tuple(_described(one.name, one.dtype, one.dims) for one in ends.inputs),
        outputs=tuple(_described(one.name, one.dtype, one.dims) for one in ends.outputs),
        operators=outline.operators,
        layouts=_layouts(((one.name, one.dims) for one in ends.inputs), outline.layout),
        warnings=(
            *(f"{name} reaches outside of the model: convert refuses it" for name in outline.reaching_out),
            *((f"this is its signature {signature}; it also has {', '.join(others)}",) if others else ()),
        ),
    )
    return program, tensors


def _keras(path: Path, kind: str) -> tuple[ProgramFacts, list[TensorFacts]]:
    read = keras_config.read_keras if kind == tensorflow_kinds.KERAS else keras_config.read_keras_h5
    outline = read(path)
    arrays = read_keras_weights(path, kind)
    program = ProgramFacts(
        producer=f"Keras {outline.version}".strip(),
        inputs=tuple(_described(one.name, one.dtype, one.dims) for one in outline.inputs),
        outputs=outline.outputs,
        operators=outline.layers,
        layouts=_layouts(((one.name, one.dims) for one in outline.inputs), outline.channels),
        warnings=() if arrays is not None else ("its parameters are not counted: their HDF5 is of another kind",),
    )
    return program, _weights(arrays or ())


def _weights(arrays: Iterable[Hdf5Array]) -> list[TensorFacts]:
    return [
        TensorFacts(
            name="/".join(array.path),
            dtype=array.dtype,
            shape=array.shape,
            elements=math.prod(array.shape),
            nbytes=math.prod(array.shape) * array.item_bytes,
        )
        for array in arrays
    ]


def _described(name: str, dtype: str, dims: Sequence[int | None] | None) -> str:
    if dims is None:
        return f"{name} {dtype}".removesuffix(" ?")
    return f"{name} {dtype} ({', '.join('?' if dim is None else str(dim) for dim in dims)})"


def _layouts(inputs: Iterable[tuple[str, Sequence[int | None] | None]], layout: str | None) -> dict[str, str]:
    if layout is None:
        return {}
    return {name: layout.lower() for name, dims in inputs if dims is not None and len(dims) == _IMAGE_AXES}
