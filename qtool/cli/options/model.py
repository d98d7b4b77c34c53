"""Turns the texts of model options into values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from qtool.formats.torch.architecture import Architecture
    from qtool.formats.trust import Trust
    from qtool.workflows.convert.model_source import ModelSource

_DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class InputShapes:
    """Holds what ``--input-shape`` says.

    Attributes:
        dims: the shape of each input; None where the option is not given.
        dtypes: element types, of the inputs that name one.
    """

    dims: dict[str, tuple[int | str, ...]] | None
    dtypes: dict[str, np.dtype[Any]]


def model_path(model: Path | None) -> Path:
    """Returns the model that the command line or the settings file names.

    Raises:
        UsageError: neither does.
    """
    if model is None:
        raise UsageError("no model is given", fix="name the file, or set `model` in qtool.toml")
    return model


def trust(pickles: bool, names: list[str] | None) -> Trust:
    """Reads ``--trust-pickle`` and ``--allow-global``.

    Raises:
        UsageError: a name has no package, or stands beside the trust in everything.
    """
    from qtool.formats.trust import Trust

    for name in names or ():
        if "." not in name or not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(f"--allow-global {name} is not a class of a package", fix="write pkg.module.Class")
    if pickles and names:
        raise UsageError("--allow-global has no effect with --trust-pickle", fix="give one of them")
    return Trust(pickles=pickles, names=frozenset(names or ()))


def model_source(
    path: Path, factory: str | None, kwargs: str | None, shapes: list[str] | None, trusted: Trust
) -> ModelSource:
    """Reads ``--model``, ``--model-kwargs`` and ``--input-shape`` for the model file that they belong to.

    Raises:
        UsageError: one of them is malformed.
    """
    from qtool.workflows.convert.model_source import ModelSource

    given = input_shapes(shapes)
    return ModelSource(
        path=path,
        architecture=architecture(factory, kwargs),
        input_shapes=given.dims,
        input_dtypes=given.dtypes,
        trust=trusted,
    )


def architecture(factory: str | None, kwargs: str | None) -> Architecture | None:
    """Reads ``--model`` and ``--model-kwargs``.

    Raises:
        UsageError: the arguments are no JSON object, or come without a factory.
    """
    from qtool.formats.torch.architecture import Architecture

    if factory is None:
        if kwargs is not None:
            raise UsageError("--model-kwargs has no effect without --model", fix="name the factory: --model FACTORY")
        return None
    try:
        values = json.loads(kwargs) if kwargs is not None else {}
    except json.JSONDecodeError as error:
        raise UsageError(
            f"--model-kwargs is not valid JSON: {error}",
            fix="""quote it: --model-kwargs '{"width": 16}'""",
        ) from error
    if not isinstance(values, dict):
        raise UsageError(
            "--model-kwargs is not a JSON object", fix="""give arguments by name: --model-kwargs '{"width": 16}'"""
        )
    return Architecture(factory, values)


def input_shapes(texts: list[str] | None) -> InputShapes:
    """Reads every ``--input-shape NAME=DIMS[:TYPE]``; without a name it means the only input.

    Raises:
        UsageError: a shape is malformed or given twice.
    """
    import numpy as np

    dims: dict[str, tuple[int | str, ...]] = {}
    dtypes: dict[str, np.dtype[Any]] = {}
    for text in texts or ():
        name, equals, shape = text.rpartition("=")
        name = name.strip()
        shape, colon, dtype = shape.partition(":")
        if equals and not name:
            raise UsageError(f"--input-shape {text} names no input", fix="write NAME=DIMS, or DIMS alone")
        if name in dims:
            raise UsageError(f"--input-shape gives '{name or text}' twice", fix="give each input once")
        if colon and dtype not in _DTYPES:
            raise UsageError(
                f"--input-shape {text} has an unknown type after ':'", fix=f"use one of {', '.join(_DTYPES)}"
            )
        dims[name] = tuple(_dim(part.strip(), text) for part in shape.split(","))
        if colon:
            dtypes[name] = np.dtype(dtype)
    return InputShapes(dims or None, dtypes)


def _dim(part: str, text: str) -> int | str:
    if part.isascii() and part.isdigit() and int(part) > 0:
        return int(part)
    if part.isidentifier():
        return part
    raise UsageError(
        f"--input-shape {text} has an invalid dimension: '{part}'",
        fix="write positive lengths or names, separated by commas: image=batch,3,224,224",
    )
