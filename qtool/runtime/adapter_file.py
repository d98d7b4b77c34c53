"""Writes adapters in the form that onnxruntime loads beside a model, ``onnxruntime.LoraAdapter``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime


def write_adapter(path: Path, parameters: Mapping[str, npt.NDArray[Any]], *, version: int = 1) -> None:
    """Writes ``parameters``, by the names of the model's inputs that they are fed to.

    Args:
        path: the ``.onnx_adapter`` file.
        parameters: float arrays.
        version: the adapter and model version to record in the file.
    """
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(version)
    adapter.set_model_version(version)
    values = {name: np.ascontiguousarray(array) for name, array in sorted(parameters.items())}
    adapter.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()})
    adapter.export_adapter(str(path))
