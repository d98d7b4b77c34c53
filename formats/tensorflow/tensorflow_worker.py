"""Loads, converts and runs one TensorFlow model in the process that ``tensorflow_process`` starts.

It is run as a script, so that it needs nothing of this project (but for building a model around weights), and
TensorFlow's libraries meet no others. Each line of
stdin is one request in JSON, each line that it answers with is one object: what was asked for, or ``error``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_SERVING_TAG = "serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A loaded model.

    Attributes:
        inputs: its inputs: the name, and the symbolic tensor that tells shape and type.
        outputs: its outputs.
        freeze: returns the graph with its variables as constants, and the names in it of inputs and outputs.
        run: computes the outputs, in order, for arrays by input name.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    freeze: Callable[[], tuple[Any, Sequence[str], Sequence[str]]]
    run: Callable[[Mapping[str, Any]], Sequence[Any]]


def load(request: Mapping[str, Any]) -> Program:
    """Loads the model of a request: ``path``, ``kind``, and where they are chosen ``inputs`` and ``outputs``."""
    if request["kind"] == "keras_weights":
        return _load_keras_weights(request)
    if request["kind"] in ("keras", "keras_h5"):
        return _load_keras(request["path"])
    if request["kind"] == "saved_model":
        return _load_saved_model(request["path"], request["signature"])
    return _load_graph(request["path"], request["inputs"], request["outputs"])


def _load_keras(path: str) -> Program:
    import keras

    # safe_mode: no code in the file is run.
    return _keras_program(keras.models.load_model(path, compile=False, safe_mode=True))


def _load_keras_weights(request: Mapping[str, Any]) -> Program:
    # After all libraries, so that no module of this project shadows one of them.
    sys.path.append(request["project"])
    from qtool.formats.tensorflow.keras_factory import model_with_weights

    code = contextlib.ExitStack()
    return _keras_program(model_with_weights(Path(request["path"]), request["factory"], request["kwargs"], code))


def _keras_program(model: Any) -> Program:
    import tensorflow as tf

    inputs = {tensor.name: tensor for tensor in model.inputs}
    shaped = [tf.TensorSpec(tuple(tensor.shape), tensor.dtype, name) for name, tensor in inputs.items()]

    def layers(*tensors: Any) -> Any:
        return tf.nest.flatten(model(list(tensors) if len(tensors) > 1 else tensors[0], training=False))

    call = tf.function(layers, input_signature=shaped, autograph=False)
    concrete = call.get_concrete_function()
    outputs = dict(zip(_output_names(model), concrete.outputs, strict=True))

    def freeze() -> tuple[Any, Sequence[str], Sequence[str]]:
        from tf2onnx import tf_loader

        ends = [tensor.name for tensor in concrete.outputs]
        starts = [tensor.name for tensor in concrete.inputs if tensor.dtype != tf.resource]
        return tf_loader.from_function(concrete, starts, ends), starts, ends

    def run(feeds: Mapping[str, Any]) -> Sequence[Any]:
        return [value.numpy() for value in call(*(tf.constant(feeds[name]) for name in inputs))]

    return Program(
        inputs=dict(zip(inputs, concrete.inputs, strict=False)),
        outputs=outputs,
        freeze=freeze,
        run=run,
    )


def _output_names(model: Any) -> list[str]:
    """Names each output after the layer that makes it, as Keras itself does."""
    names: list[str] = []
    for position, name in enumerate(getattr(model, "output_names", None) or ["output"] * len(model.outputs)):
        names.append(name if name not in names else f"{name}_{position}")
    return names


def _load_saved_model(path: str, signature: str) -> Program:
    import tensorflow as tf

    try:
        model = tf.saved_model.load(path, tags=[_SERVING_TAG])
        chosen = model.signatures[signature]
    except (AttributeError, KeyError, ValueError):
        # It also restores what only training needs, such as an optimizer, and fails where that has changed since.
        return _load_saved_session(path, signature)
    inputs = dict(chosen.structured_input_signature[1])
    # As TensorFlow flattens dictionaries, in the order of their keys.
    outputs = dict(zip(sorted(chosen.structured_outputs), chosen.outputs, strict=True))

    def freeze() -> tuple[Any, Sequence[str], Sequence[str]]:
        from tf2onnx import tf_loader

        by_name = {tensor.op.name: tensor.name for tensor in chosen.inputs if tensor.dtype != tf.resource}
        starts = [by_name.get(name) or by_name[f"{signature}_{name}"] for name in inputs]
        ends = [one.name for one in outputs.values()]
        return tf_loader.from_function(chosen, starts, ends), starts, ends

    def run(feeds: Mapping[str, Any]) -> Sequence[Any]:
        results = chosen(**{name: tf.constant(value) for name, value in feeds.items()})
        # The loaded model owns its variables: this reference keeps them alive.
        return [results[name].numpy() for name in outputs] if model is not None else []

    return Program(inputs=inputs, outputs=outputs, freeze=freeze, run=run)


def _load_saved_session(path: str, signature: str) -> Program:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph)
        signatures = tf.compat.v1.saved_model.load(session, [_SERVING_TAG], path).signature_def
    chosen = signatures[signature]
    inputs = {name: graph.get_tensor_by_name(info.name) for name, info in sorted(chosen.inputs.items())}
    outputs = {name: graph.get_tensor_by_name(info.name) for name, info in sorted(chosen.outputs.items())}
    return _in_session(session, inputs, outputs)


def _load_graph(path: str, input_names: Sequence[str], output_names: Sequence[str]) -> Program:
    import tensorflow as tf

    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(Path(path).read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
        session = tf.compat.v1.Session(graph=graph)
    inputs = {name.removesuffix(":0"): graph.get_tensor_by_name(_port(name)) for name in input_names}
    outputs = {name.removesuffix(":0"): graph.get_tensor_by_name(_port(name)) for name in output_names}
    return _in_session(session, inputs, outputs)


def _in_session(session: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Program:
    ends = [tensor.name for tensor in outputs.values()]

    def freeze() -> tuple[Any, Sequence[str], Sequence[str]]:
        from tensorflow.python.framework import convert_to_constants

        frozen = convert_to_constants.convert_variables_to_constants_from_session_graph(
            session, session.graph.as_graph_def(add_shapes=True), [tensor.op.name for tensor in outputs.values()]
        )
        return frozen, [tensor.name for tensor in inputs.values()], ends

    def run(feeds: Mapping[str, Any]) -> Sequence[Any]:
        values: Sequence[Any] = session.run(ends, {inputs[name].name: feeds[name] for name in inputs})
        return values

    return Program(inputs=inputs, outputs=outputs, freeze=freeze, run=run)


def _port(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def convert(program: Program, request: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the program as ONNX to ``output``; inputs in ``nchw`` have their channels first there."""
    import tensorflow as tf
    import tf2onnx

    frozen, starts, ends = program.freeze()
    tf.compat.v1.reset_default_graph()
    renamed = {tensor: name for tensor, name in zip(starts, program.inputs, strict=True) if tensor != name}
    renamed |= {tensor: name for tensor, name in zip(ends, program.outputs, strict=True) if tensor != name}
    by_name = dict(zip(program.inputs, starts, strict=True))
    model, _ = tf2onnx.convert.from_graph_def(
        frozen,
        name="tensorflow",
        input_names=list(starts),
        output_names=list(ends),
        opset=request["opset"],
        inputs_as_nchw=[by_name[name] for name in request["nchw"]] or None,
        shape_override={by_name[name]: shape for name, shape in request["shapes"].items()} or None,
        tensors_to_rename=renamed,
        custom_op_handlers={"Erfc": (_write_erfc, [])},
    )
    Path(request["output"]).write_bytes(model.SerializeToString())
    return {}


def _write_erfc(context: Any, node: Any, name: str, _args: Any) -> None:
    """Writes erfc(x), which Keras puts into a Gelu and ONNX does not have, as 1 - erf(x)."""
    import numpy as np
    from tf2onnx import utils

    value = node.input[0]
    dtype = utils.map_onnx_to_numpy_type(context.get_dtype(value))
    one = context.make_const(utils.make_name(f"{name}_one"), np.asarray(1, dtype))
    erf = context.make_node("Erf", [value], name=utils.make_name(f"{name}_erf"))
    context.copy_dtype(value, erf.output[0])
    context.copy_shape(value, erf.output[0])
    node.type, node.domain = "Sub", ""
    context.replace_inputs(node, [one.output[0], erf.output[0]])


def run(program: Program, request: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the program on the arrays in ``feeds``, an ``.npz``, and stores the outputs in order in ``output``."""
    import numpy as np

    with np.load(request["feeds"], allow_pickle=False) as arrays:
        feeds = {name: arrays[f"arr_{position}"] for position, name in enumerate(program.inputs)}
    np.savez(request["output"], *program.run(feeds))
    return {}


def _interface(tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dims": None if tensor.shape.rank is None else tensor.shape.as_list(),
            "dtype": tensor.dtype.name,
        }
        for name, tensor in tensors.items()
    ]


class WorkerError(Exception):
    """Describes what a library said, or a part of this project with the fix."""

    def __init__(self, problem: str, fix: str | None) -> None:
        """Keeps both; ``fix`` is None where none is known."""
        super().__init__(problem)
        self.fix = fix


def _answer(program: Program | None, request: Mapping[str, Any]) -> tuple[Program, dict[str, Any]]:
    try:
        if program is None:
            program = load(request)
            return program, {"inputs": _interface(program.inputs), "outputs": _interface(program.outputs)}
        return program, (convert if request["do"] == "convert" else run)(program, request)
    except Exception as error:  # TensorFlow, Keras and tf2onnx raise many kinds of errors
        problem, fix = getattr(error, "problem", None), getattr(error, "fix", None)
        raise WorkerError(f"{type(error).__name__}: {error}" if problem is None else problem, fix) from error


def _serve(requests: IO[str], answers: IO[str]) -> None:
    program: Program | None = None
    for line in requests:
        try:
            program, answer = _answer(program, json.loads(line))
        except WorkerError as error:
            answer = {"error": str(error), "fix": error.fix}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    # What the libraries print goes to stderr: stdout belongs to the answers.
    _channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.stdin, _channel)
