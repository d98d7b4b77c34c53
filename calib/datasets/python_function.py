"""Imports a function named on the command line."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from qtool.calib.errors import CalibError


def imported(source: str) -> Callable[..., Any]:
    """Returns the function that ``source`` names, ``pkg.module:function`` or ``file.py:function``.

    Raises:
        CalibError: the module or the function is missing, or importing it fails.
    """
    module_name, _, function_name = source.rpartition(":")
    module = _module(module_name, source)
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(function_name, names, n=1)
        raise CalibError(
            f"there is no '{function_name}' in {module_name}",
            fix=f"did you mean {module_name}:{near[0]}?" if near else "check the name of the function",
        )
    if not callable(function):
        raise CalibError(f"{source} is a {type(function).__name__}, no function", fix="name a function")
    return cast("Callable[..., Any]", function)


def _module(name: str, source: str) -> ModuleType:
    path = Path(name)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise CalibError(f"there is no file {name}", fix="check the path before the colon")
    with _importable(path.parent if is_file else Path()):
        try:
            return _run_file(path) if is_file else importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                fix = "check the name, install the package, or give the file: path/to/file.py:function"
                raise CalibError(f"there is no module '{error.name}' for {source}", fix=fix) from error
            raise CalibError(
                f"{name} needs the module '{error.name}', which is not installed", fix=f"pip install {error.name}"
            ) from error
        except Exception as error:  # a module may raise anything while it is imported
            raise CalibError(
                f"importing {name} raises {type(error).__name__}: {' '.join(str(error).split())}", fix="correct it"
            ) from error


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CalibError(f"{path} is no Python file", fix="give a .py file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets imports find modules in ``folder``: what lies beside a script, or in the working folder."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
