"""Finds objects in a Keras configuration other than the classes and functions that Keras computes with.

Loading a configuration imports the ``module`` of each object in it and calls what ``class_name`` names there, at any
depth: layers in wrappers, activations, initializers, losses. So all of them are checked against an allow-list.
Source: https://keras.io/api/models/model_saving_apis/serialization_utils/.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qtool.formats.findings import Risk
from qtool.formats.tensorflow.keras_names import FUNCTIONS, LAYERS, OPERATIONS, PARTS

_CLASSES = LAYERS | PARTS | OPERATIONS
# The modules of these in Keras 2 and 3; anything else is another package, or a way through Keras to one.
_MODULE = re.compile(
    r"(keras|tf_keras|tensorflow\.keras|tensorflow\.python\.keras|tensorflow_core\.python\.keras)"
    r"(\.api|\.src|\._v2|\._tf_keras|\.keras)*"
    r"(\.(layers|models|applications|engine|initializers|regularizers|constraints|losses|metrics|optimizers|optimizer_v2|activations|"
    r"dtype_policies|mixed_precision|quantizers|random|ops|trainers)(\.[a-z]\w*)*)?"
)
_FUNCTION_MODULE = "builtins"
# Values of Python and Keras that hold only numbers, strings and names of layers.
_VALUES = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__", "__tuple__"}
)
_TYPE_SPECS = frozenset({"RaggedTensorSpec", "SparseTensorSpec", "TensorSpec"})
_TENSORFLOW_MODULE = re.compile(r"tensorflow(\.\w+)*")
_WITH_CODE = frozenset(
    {"FlaxLayer", "JaxLayer", "Lambda", "LambdaCallback", "TFSMLayer", "TorchModuleWrapper", "__lambda__"}
)
# Keras 2 writes functions of TensorFlow as layers; these only compute.
_CALLS_OF_TENSORFLOW = frozenset({"SlicingOpLambda", "TFOpLambda"})
_TENSORFLOW_FUNCTION = re.compile(
    r"(compat\.v1\.)?((math|nn|linalg|signal|__operators__)\.\w+|image\.(resize|crop_and_resize|convert_image_dtype)|"
    r"abs|add|argmax|argmin|broadcast_to|cast|clip_by_value|concat|convert_to_tensor|cumsum|einsum|exp|expand_dims|eye|"
    r"fill|gather|gather_nd|identity|matmul|maximum|minimum|multiply|one_hot|ones|ones_like|pad|pow|range|reduce_\w+|"
    r"repeat|reshape|reverse|roll|round|shape|sigmoid|sign|slice|split|sqrt|square|squeeze|stack|stop_gradient|"
    r"strided_slice|subtract|tanh|tensordot|tile|transpose|truediv|unstack|where|zeros|zeros_like)"
)
# Layers interpret a string here as the path of a file on the machine that loads the model.
_PATH_KEY = re.compile(r"(\w+_)?vocabulary(_\w+)?|(file_?)?path|filename")
# Layers accept a function or an object here, by its name or by a description of it.
_PART_KEY = re.compile(r"(\w+_)?(activation|initializer|regularizer|constraint)")
_ALIASES = frozenset({"normal", "one", "uniform", "zero"})
# The first bytes of a marshalled function in base64, with and without the flag of references.
_MARSHALLED_HEADS = ("4w", "Yw")
_SHORTEST_CODE_BYTES = 24
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class KerasFinding:
    """A part of a configuration that is not of Keras, or accesses files.

    Attributes:
        risk: what could happen.
        place: where it is in the configuration, as keys with slashes between.
        what: the reason in words.
    """

    risk: Risk
    place: str
    what: str


def foreign_objects(config: Any) -> Iterator[KerasFinding]:
    """Yields all parts of a configuration, at any depth, that import, run or read something of the file's choice."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(f"{place}/{number}", one) for number, one in reversed(list(enumerate(value)))]
        elif isinstance(value, dict):
            yield from _object_findings(value, place.removeprefix("/"))
            waiting += [(f"{place}/{_short(key)}", one) for key, one in reversed(value.items())]


def _object_findings(value: Mapping[str, Any], place: str) -> Iterator[KerasFinding]:
    if "class_name" in value:
        reason = _reason(value)
        if reason is not None:
            yield KerasFinding(Risk.RUNS_CODE, place or "model", reason)
    for key, part in value.items():
        if isinstance(part, str) and part and _PATH_KEY.fullmatch(key):
            yield KerasFinding(
                Risk.REACHES_OUTSIDE, f"{place}/{key}", f"reads the file {_short(part)} of the machine that opens it"
            )
        elif _PART_KEY.fullmatch(key) and not _is_known_part(part):
            yield KerasFinding(
                Risk.RUNS_CODE,
                f"{place}/{_short(key)}",
                f"is {_short(part)}, which is no part that Keras computes with",
            )
        elif isinstance(part, list) and part and _is_marshalled(part[0]):
            yield KerasFinding(Risk.RUNS_CODE, f"{place}/{_short(key)}", "is Python code that the file brings")


def _reason(value: Mapping[str, Any]) -> str | None:
    """Describes what is wrong with an object; None for what Keras itself computes with."""
    name, module = value["class_name"], value.get("module")
    if not isinstance(name, str) or not isinstance(module, str | None):
        return "has an object whose class is no name"
    if name in _WITH_CODE:
        return f"has an object of the class {name}, which brings its own code"
    if name == "__typespec__":
        spec = value.get("spec_name")
        in_tensorflow = _TENSORFLOW_MODULE.fullmatch(module or "tensorflow")
        return None if in_tensorflow and str(spec) in _TYPE_SPECS else _foreign(spec, module)
    if name in ("TypeSpec", "CompositeTensor"):
        spec = str(value.get("type_spec", value.get("spec", ""))).rpartition(".")[2]
        return None if spec in _TYPE_SPECS else _foreign(spec, None)
    if name in _VALUES:
        return None
    if name == "function":
        function = value.get("config")
        known = function in FUNCTIONS if isinstance(function, str) else False
        at_home = module is None or module == _FUNCTION_MODULE or _MODULE.fullmatch(module)
        return None if known and at_home and _registered(value, {str(function), name}) else _foreign(function, module)
    if name in _CALLS_OF_TENSORFLOW:
        inner = value.get("config")
        function = inner.get("function") if isinstance(inner, dict) else None
        computes = isinstance(function, str) and _TENSORFLOW_FUNCTION.fullmatch(function) is not None
        return None if computes else f"calls TensorFlow's {_short(function)}"
    # Keras 2 registered its own optimizers as custom objects.
    bare = name.removeprefix("Custom>")
    if bare not in _CLASSES or not _registered(value, {name, bare, f"Custom>{bare}"}):
        return _foreign(name if bare not in _CLASSES else value.get("registered_name"), module)
    return None if module is None or _MODULE.fullmatch(module) else _foreign(name, module)


def _is_known_part(part: Any) -> bool:
    """Returns whether what stands for a part is a name that Keras knows, or an object, which is looked at by itself."""
    if isinstance(part, str):
        return _plain(part) in _PART_NAMES
    return not isinstance(part, dict | list) or (isinstance(part, dict) and "class_name" in part)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").removesuffix("v2")


_PART_NAMES = frozenset(map(_plain, _CLASSES | FUNCTIONS | _ALIASES))


def _is_marshalled(text: Any) -> bool:
    if not isinstance(text, str) or not text.startswith(_MARSHALLED_HEADS):
        return False
    try:
        return len(base64.b64decode(text.replace("\n", ""), validate=True)) > _SHORTEST_CODE_BYTES
    except binascii.Error:
        return False


def _registered(value: Mapping[str, Any], names: set[str]) -> bool:
    """Returns whether an object is registered under its own name, or under none: the other name would win."""
    return value.get("registered_name") is None or str(value["registered_name"]) in names


def _foreign(name: Any, module: str | None) -> str:
    full = f"{module}.{_short(name)}" if module else _short(name)
    return f"imports and calls {_short(full)}, which is no part that Keras computes with"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"
