"""Builds torch modules by their names in model libraries."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.formats.errors import FormatError

if TYPE_CHECKING:
    import torch


def zoo_name(factory: str) -> tuple[str, str] | None:
    """Splits ``timm:NAME``, ``torchvision:NAME`` or ``transformers:FOLDER``; None for what names no library."""
    library, colon, name = factory.partition(":")
    return (library, name) if colon and name and library in _ZOOS else None


def build_from_zoo(library: str, name: str, kwargs: Mapping[str, Any]) -> torch.nn.Module:
    """Builds a model without its trained weights; nothing is downloaded.

    Args:
        library: ``timm``, ``torchvision`` or ``transformers``.
        name: the model's name there, or the folder with its config.json.
        kwargs: arguments for the library, or entries of the config.

    Raises:
        FormatError: the library is not installed, has no such model, or cannot build it so.
    """
    try:
        module: torch.nn.Module = _ZOOS[library](name, kwargs)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # libraries raise many kinds of errors for arguments and configs
        lines = str(error).strip().splitlines()
        raise FormatError(
            f"{library} cannot build {name}: {type(error).__name__}{f': {lines[0]}' if lines else ''}",
            fix="correct --model-kwargs, or build it yourself: --model file.py:factory",
        ) from error
    return module.eval()


def _timm(name: str, kwargs: Mapping[str, Any]) -> Any:
    timm = _library("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    return timm.create_model(name, pretrained=False, **kwargs)


def _torchvision(name: str, kwargs: Mapping[str, Any]) -> Any:
    models = _library("torchvision").models
    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    # Detectors download a trained backbone unless they are told not to.
    untrained = {"weights", "weights_backbone"} & set(inspect.signature(builder).parameters)
    return builder(**{**dict.fromkeys(untrained), **kwargs})


def _transformers(folder: str, kwargs: Mapping[str, Any]) -> Any:
    config_path = Path(folder) / "config.json"
    if not config_path.is_file():
        raise FormatError(f"there is no config.json in {folder}", fix="name the folder that the model was saved to")
    transformers = _library("transformers")
    if json.loads(config_path.read_text(encoding="utf-8")).get("auto_map"):
        raise FormatError(
            f"{folder} contains code for its model, which is not run",
            fix="name the class in that code yourself: --model file.py:factory",
        )
    options = {"attn_implementation": "eager", "local_files_only": True, "trust_remote_code": False, **kwargs}
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    # A graph cannot output a cache of keys and values.
    config.use_cache = bool(kwargs.get("use_cache", False))
    names = config.architectures or []
    kind = getattr(transformers, names[0], None) if names else None
    return kind(config) if kind is not None else transformers.AutoModel.from_config(config)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except MemoryError:
        raise
    except ModuleNotFoundError as error:
        raise FormatError(
            f"{name} is not installed", fix=f"pip install {name}, or build it yourself: --model file.py:factory"
        ) from error
    except Exception as error:  # a library that does not fit the installed torch fails in its own way
        raise FormatError(
            f"importing {name} fails: {type(error).__name__}: {error}",
            fix=f"install the {name} that belongs to this torch",
        ) from error


def _unknown(library: str, name: str, names: list[str]) -> FormatError:
    near = difflib.get_close_matches(name, names, n=1)
    fix = f"did you mean {library}:{near[0]}?" if near else f"see {library}'s list_models()"
    return FormatError(f"{library} has no model '{name}'", fix=fix)


_ZOOS: Mapping[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}
