"""What a model can be converted to: a new one is a line in each of the two tables."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class TargetFormat(StrEnum):
    """Is what a model can be converted to."""

    ONNX = "onnx"
    PTH = "pth"
    SAFETENSORS = "safetensors"


TARGET_FORMATS: Mapping[TargetFormat, str] = {
    TargetFormat.ONNX: "onnx",
    TargetFormat.PTH: "torch",
    TargetFormat.SAFETENSORS: "safetensors",
}
