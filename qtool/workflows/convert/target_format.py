"""What a model can be converted to: a new one is a line here, and a module where nothing reads and writes it yet."""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from qtool.formats.base import GraphFormat, WeightsFormat
    from qtool.workflows.convert.targets.base import RuntimeFormat

    Writer: TypeAlias = GraphFormat | WeightsFormat | RuntimeFormat


class TargetFormat(StrEnum):
    """Is what a model can be converted to.

    A member is what ``--to`` takes, and the location of what writes it: a format of ``qtool.formats``, or a
    ``RuntimeFormat``.

    Attributes:
        location: ``module:name``; nothing is imported before it is used.
    """

    location: str

    def __new__(cls, name: str, location: str) -> TargetFormat:
        """Makes the member that is equal to ``name``."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.location = location
        return member

    ONNX = "onnx", "qtool.formats.onnx.onnx_format:OnnxFormat"
    PTH = "pth", "qtool.formats.torch.torch_checkpoint:TorchCheckpoint"
    SAFETENSORS = "safetensors", "qtool.formats.weights.safetensors_file:SafetensorsFile"
    OPENVINO = "openvino", "qtool.workflows.convert.targets.openvino_ir:OpenVinoIr"
    TFLITE = "tflite", "qtool.workflows.convert.targets.tflite.tflite_file:TfliteFile"

    def load(self) -> Writer:
        """Returns what writes the format; what it needs is imported now and not before.

        The attribute ``holds`` tells the kinds apart.
        """
        module, _, attribute = self.location.partition(":")
        writer: Writer = getattr(import_module(module), attribute)()
        return writer
