"""Reads the configuration that Keras stores with its weights, layers, inputs and outputs, without Keras."""

from __future__ import annotations

import contextlib
import json
import mmap
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtool.formats.errors import FormatError
from qtool.formats.tensorflow.hdf5_outline import Hdf5Error, read_texts

_CONFIG, _METADATA = "config.json", "metadata.json"
_LARGEST_CONFIG_BYTES = 64 << 20
# How the configuration begins, as Keras 3 and Keras 2 write it, in HDF5 a text among other bytes.
_CONFIG_HEAD = re.compile(rb'\{"(module|class_name)": ')
_MOST_TRIES = 100
_H5_ATTRIBUTES = ("model_config", "training_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasInput:
    """Describes an input.

    Attributes:
        name: the name of its layer.
        dtype: its element type.
        dims: its shape, None for a free length.
    """

    name: str
    dtype: str
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasOutline:
    """Describes a model.

    Attributes:
        version: the Keras that wrote it; empty where it does not say.
        layers: how many layers there are of each class, the most frequent first; those of inner models included.
        inputs: its inputs.
        outputs: the names of the layers that make its outputs.
        channels: ``NHWC`` or ``NCHW``, where a layer says so.
    """

    version: str
    layers: Mapping[str, int]
    inputs: tuple[KerasInput, ...]
    outputs: tuple[str, ...]
    channels: str | None


def read_keras(path: Path) -> KerasOutline:
    """Describes a ``.keras`` file.

    Raises:
        FormatError: it is damaged.
    """
    config, metadata = _members(path, _CONFIG, _METADATA)
    return _outline(config, str(metadata.get("keras_version", "")))


def read_keras_h5(path: Path) -> KerasOutline:
    """Describes an ``.h5`` file.

    Raises:
        FormatError: its configuration is not found.
    """
    with contextlib.suppress(Hdf5Error):
        for config in _h5_configs(path):
            if isinstance(_mapping(config.get("config")).get("layers"), list):
                return _outline(config, "")
    return _outline(_scanned_h5(path), "")


def read_configs(path: Path, *, h5: bool) -> tuple[list[dict[str, Any]], bool]:
    """Returns the configurations in a ``.keras`` or ``.h5`` file, and whether they are certainly complete.

    Raises:
        FormatError: it is damaged, or no configuration is found.
    """
    if not h5:
        return _members(path, _CONFIG), True
    try:
        found = _h5_configs(path)
    except Hdf5Error:
        return [_scanned_h5(path)], False
    if not found:
        raise _damaged(path)
    return found, True


def _h5_configs(path: Path) -> list[dict[str, Any]]:
    """Reads the attributes that Keras reads.

    Raises:
        Hdf5Error: they are stored in a way that is not read here.
    """
    with path.open("rb") as stream:
        texts = read_texts(stream, _H5_ATTRIBUTES)
    try:
        found = [json.loads(text) for text in texts.values()]
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    return [config for config in found if isinstance(config, dict)]


def _scanned_h5(path: Path) -> dict[str, Any]:
    """Searches the file's bytes for the configuration.

    Raises:
        FormatError: it is not found.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found, _ in zip(_CONFIG_HEAD.finditer(content), range(_MOST_TRIES), strict=False):
            text = content[found.start() : found.start() + _LARGEST_CONFIG_BYTES].decode("utf-8", "replace")
            with contextlib.suppress(ValueError, RecursionError):  # this text is another one, or cut
                config, _ = json.JSONDecoder().raw_decode(text)
                if isinstance(config, dict) and isinstance(_mapping(config.get("config")).get("layers"), list):
                    return config
    raise _damaged(path)


def _members(path: Path, *names: str) -> list[dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [_member(archive, path, name) for name in names]
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RecursionError) as error:
        raise _damaged(path) from error


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> dict[str, Any]:
    info = archive.getinfo(name)
    if info.file_size > _LARGEST_CONFIG_BYTES:
        raise FormatError(
            f"{name} in {path} claims {info.file_size:,} bytes", fix="do not use this file unless you trust it"
        )
    with archive.open(info) as stream:
        value = json.loads(stream.read(_LARGEST_CONFIG_BYTES))
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _outline(config: Mapping[str, Any], version: str) -> KerasOutline:
    layers = _layers(config)
    inner = _mapping(config.get("config"))
    counts = Counter(str(layer.get("class_name", "?")) for layer in layers)
    settings = [_mapping(layer.get("config")) for layer in layers]
    formats = [str(one["data_format"]) for one in settings if one.get("data_format")]
    last = layers[-1] if layers else {}
    outputs = _ends(inner.get("output_layers")) or _ends([_mapping(last.get("config")).get("name")])
    return KerasOutline(
        version=version,
        layers=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        inputs=tuple(_inputs(settings, layers)),
        outputs=tuple(outputs),
        channels={"channels_last": "NHWC", "channels_first": "NCHW"}.get(formats[0]) if formats else None,
    )


def _layers(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the layers of a model and, in their place, those of models in it."""
    found: list[Mapping[str, Any]] = []
    waiting = [config]
    while waiting:
        one = waiting.pop()
        inner = _mapping(one.get("config")).get("layers")
        if isinstance(inner, list):
            waiting += [layer for layer in reversed(inner) if isinstance(layer, dict)]
        else:
            found.append(one)
    return found


def _inputs(settings: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]) -> list[KerasInput]:
    return [
        KerasInput(
            name=str(setting.get("name", "?")),
            dtype=str(setting.get("dtype") or "?"),
            dims=tuple(dim if isinstance(dim, int) else None for dim in _shape(setting)),
        )
        for setting, layer in zip(settings, layers, strict=True)
        if layer.get("class_name") == "InputLayer"
    ]


def _shape(setting: Mapping[str, Any]) -> Sequence[Any]:
    shape = setting.get("batch_shape") or setting.get("batch_input_shape")
    return shape if isinstance(shape, list) else ()


def _ends(value: Any) -> list[str]:
    """Returns the names of layers in ``value``: a name, one ``[name, node, tensor]``, or lists and mappings of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [name for one in value.values() for name in _ends(one)]
    if isinstance(value, list):
        if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int):
            return [value[0]]
        return [name for one in value for name in _ends(one)]
    return []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _damaged(path: Path) -> FormatError:
    return FormatError(f"{path} holds no readable Keras configuration", fix="save the model again: model.save(path)")
