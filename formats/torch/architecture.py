"""Builds torch modules and other models from the user's code."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from qtool.formats.errors import FormatError
from qtool.formats.torch.model_zoos import build_from_zoo, zoo_name

if TYPE_CHECKING:
    import torch

_Model = TypeVar("_Model")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The code that builds a module.

    Attributes:
        factory: ``pkg.module:factory`` or ``file.py:factory``, a callable or the module itself.
            ``timm:NAME``, ``torchvision:NAME`` and ``transformers:FOLDER`` name a model of these libraries.
        kwargs: keyword arguments for the call.
    """

    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def building(architecture: Architecture) -> Iterator[torch.nn.Module]:
    """Yields the module in evaluation mode; its code stays imported until the block ends.

    The working folder (or the file's own) is importable meanwhile. What the code prints goes to stderr.

    Raises:
        FormatError: there is no such code, it fails, or its result is not a ``torch.nn.Module``.
    """
    import torch

    zoo = zoo_name(architecture.factory)
    if zoo is not None:
        with contextlib.redirect_stdout(sys.stderr):
            yield build_from_zoo(*zoo, architecture.kwargs)
        return
    with building_any(architecture, torch.nn.Module, "torch.nn.Module") as module:
        yield module.eval()


@contextlib.contextmanager
def building_any(architecture: Architecture, kind: type[_Model], kind_name: str) -> Iterator[_Model]:
    """Yields what the code builds; it stays imported until the block ends.

    Args:
        architecture: the code.
        kind: the class that the model must be of.
        kind_name: the name of that class, for messages.

    Raises:
        FormatError: there is no such code, it fails, or its result is of another class.
    """
    location, colon, name = architecture.factory.rpartition(":")
    if not colon or not location or not name:
        raise FormatError(
            f"'{architecture.factory}' names no factory", fix="write pkg.module:factory or file.py:factory"
        )
    is_file = location.endswith(".py") or "/" in location or "\\" in location
    folder = Path(location).resolve().parent if is_file else Path.cwd()
    with _importable(folder), contextlib.redirect_stdout(sys.stderr):
        code = _import_file(Path(location)) if is_file else _import_module(location)
        yield _build(_attribute(code, name, location), architecture, kind, kind_name)


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Puts ``folder`` on the import path, and forgets afterwards what was imported from it."""
    before = set(sys.modules)
    path = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin is not None and _lies_in(Path(origin), folder):
                del sys.modules[name]


def _lies_in(origin: Path, folder: Path) -> bool:
    # An environment inside the working folder holds libraries, whose state must outlive the block.
    return origin.is_relative_to(folder) and "site-packages" not in origin.parts


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FormatError(f"there is no file {path} to build the module from", fix="check the path before the colon")
    name = f"_architecture_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise FormatError(f"{path} is not a Python file", fix="name a .py file before the colon")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # foreign code raises what it likes
        raise _failed(f"running {path} fails", error) from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(f"importing {name} fails", error) from error
        raise FormatError(
            f"there is no Python module {error.name}",
            fix=f"install it, run in its folder, or name the file: path/to/{name.split('.')[-1]}.py:factory",
        ) from error
    except (Exception, SystemExit) as error:  # foreign code raises what it likes
        raise _failed(f"importing {name} fails", error) from error


def _attribute(code: ModuleType, name: str, location: str) -> Any:
    if hasattr(code, name):
        return getattr(code, name)
    offered = [key for key, value in vars(code).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, offered, n=1)
    if near:
        fix = f"did you mean {location}:{near[0]}?"
    else:
        own = [key for key in offered if getattr(getattr(code, key), "__module__", None) == code.__name__]
        fix = f"it offers {', '.join(own[:8])}" if own else "define it there"
    raise FormatError(f"{location} has no '{name}'", fix=fix)


def _build(found: Any, architecture: Architecture, kind: type[_Model], kind_name: str) -> _Model:
    if isinstance(found, kind):
        if architecture.kwargs:
            raise FormatError(
                f"{architecture.factory} is a module already and takes no arguments", fix="drop --model-kwargs"
            )
        return found
    if not callable(found):
        raise FormatError(
            f"{architecture.factory} is a {type(found).__name__}, not something that builds a module",
            fix=f"name a function or class that returns a {kind_name}",
        )
    _check_arguments(found, architecture)
    try:
        module = found(**architecture.kwargs)
    except (Exception, SystemExit) as error:  # foreign code raises what it likes
        raise _failed(f"{architecture.factory} fails", error) from error
    if not isinstance(module, kind):
        raise FormatError(
            f"{architecture.factory} returns a {type(module).__name__}, not a {kind_name}",
            fix="let it return the module",
        )
    return module


def _check_arguments(factory: Any, architecture: Architecture) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # some callables of C extensions have none
    try:
        signature.bind(**architecture.kwargs)
    except TypeError as error:
        takes = ", ".join(str(parameter) for parameter in signature.parameters.values()) or "no arguments"
        raise FormatError(
            f"{architecture.factory} cannot be called so: {error}",
            fix=f"pass --model-kwargs as JSON; it takes: {takes}",
        ) from error


def _failed(what: str, error: BaseException) -> FormatError:
    lines = str(error).strip().splitlines()
    return FormatError(
        f"{what}: {type(error).__name__}{': ' + lines[0] if lines else ''}",
        fix="run that code by itself until it works (--debug shows the traceback)",
    )
