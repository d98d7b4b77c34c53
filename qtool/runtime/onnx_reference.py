"""Runs models that onnxruntime does not load, in the reference implementation of the onnx package, which is slow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx.reference import ReferenceEvaluator

from qtool.calib.specs import Array
from qtool.errors import RuntimeRefusedError
from qtool.runtime.plain_values import plain


class OnnxReference:
    """Runs one model in numpy, as the standard defines its operators; supports every opset that onnx does."""

    def __init__(self, model: Path) -> None:
        """Opens a file.

        Raises:
            RuntimeRefusedError: it has operators that the reference implementation lacks.
        """
        self._path = model
        try:
            self._evaluator = ReferenceEvaluator(onnx.load(model))
        except Exception as error:  # it reports missing operators with many kinds of errors
            raise self._refused(error) from error

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Returns every output for one batch of inputs.

        Raises:
            RuntimeRefusedError: an operator fails.
        """
        try:
            values = self._evaluator.run(None, dict(feeds))
        except Exception as error:  # numpy raises many kinds of errors
            raise self._refused(error) from error
        return {name: plain(value) for name, value in zip(self._evaluator.output_names, values, strict=True)}

    def _refused(self, error: Exception) -> RuntimeRefusedError:
        said = " ".join(str(error).split())
        return RuntimeRefusedError(
            f"neither onnxruntime nor the reference implementation of onnx runs {self._path}: {said}",
            fix="install a newer onnxruntime, or export the model again with an older opset",
        )
