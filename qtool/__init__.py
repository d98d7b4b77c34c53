"""qtool makes trained models small and fast without breaking them.

The Python API: each function takes a request and returns a report, writes whole files or none, and prints nothing.

    import qtool

    report = qtool.quantize(
        qtool.QuantizeRequest(
            source=qtool.ModelSource(path=Path("model.onnx")), data=qtool.DataRequest(source="samples.npz")
        )
    )
    print(report.output, report.coverage.share)

A second argument, ``progress``, receives steps, remarks and warnings (``qtool.Progress``); without it they are dropped.
What goes wrong is raised as ``qtool.QtoolError``, or as ``qtool.formats.errors.FormatError`` and
``qtool.calib.errors.CalibError`` where a model file or data is at fault; each says the problem and the fix.
Names are loaded when they are first used, so that ``import qtool`` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from qtool.version import __version__ as __version__

if TYPE_CHECKING:
    from qtool.calib.datasets.text_file import TextOptions as TextOptions
    from qtool.errors import QtoolError as QtoolError
    from qtool.formats.torch.architecture import Architecture as Architecture
    from qtool.progress import Progress as Progress
    from qtool.reporting.gates import parse_gate as parse_gate
    from qtool.reporting.model import Report as Report
    from qtool.schemes import DynamicScheme as DynamicScheme
    from qtool.schemes import Scheme as Scheme
    from qtool.schemes import WeightOnlyScheme as WeightOnlyScheme
    from qtool.selection import NodeSelection as NodeSelection
    from qtool.weights.blocks.grid import BlockGrid as BlockGrid
    from qtool.workflows.convert.convert import convert as convert
    from qtool.workflows.convert.model_source import ModelSource as ModelSource
    from qtool.workflows.convert.request import ConvertReport as ConvertReport
    from qtool.workflows.convert.request import ConvertRequest as ConvertRequest
    from qtool.workflows.convert.target_format import TargetFormat as TargetFormat
    from qtool.workflows.lora.merge_weights import merge_lora as merge_lora
    from qtool.workflows.lora.request import AdapterSource as AdapterSource
    from qtool.workflows.lora.request import MergeReport as MergeReport
    from qtool.workflows.lora.request import MergeRequest as MergeRequest
    from qtool.workflows.quantize.data_request import DataRequest as DataRequest
    from qtool.workflows.quantize.dequantize import DequantizeReport as DequantizeReport
    from qtool.workflows.quantize.dequantize import DequantizeRequest as DequantizeRequest
    from qtool.workflows.quantize.dequantize import dequantize as dequantize
    from qtool.workflows.quantize.dynamic_request import DynamicReport as DynamicReport
    from qtool.workflows.quantize.dynamic_request import DynamicRequest as DynamicRequest
    from qtool.workflows.quantize.quantize import quantize as quantize
    from qtool.workflows.quantize.quantize_dynamic import quantize_dynamic as quantize_dynamic
    from qtool.workflows.quantize.quantize_weights import quantize_weights as quantize_weights
    from qtool.workflows.quantize.request import QuantizeReport as QuantizeReport
    from qtool.workflows.quantize.request import QuantizeRequest as QuantizeRequest
    from qtool.workflows.quantize.weight_only_request import BitsGoal as BitsGoal
    from qtool.workflows.quantize.weight_only_request import WeightOnlyReport as WeightOnlyReport
    from qtool.workflows.quantize.weight_only_request import WeightOnlyRequest as WeightOnlyRequest
    from qtool.workflows.report.report import ReportRequest as ReportRequest
    from qtool.workflows.report.report import compare as _compare
    from qtool.workflows.report.report_data import DataSource as DataSource
    from qtool.workflows.tune.efforts import Effort as Effort
    from qtool.workflows.tune.efforts import searches as searches
    from qtool.workflows.tune.timing import Timing as Timing

    report = _compare

_HOMES: Mapping[str, str] = {
    "AdapterSource": "qtool.workflows.lora.request",
    "Architecture": "qtool.formats.torch.architecture",
    "BitsGoal": "qtool.workflows.quantize.weight_only_request",
    "BlockGrid": "qtool.weights.blocks.grid",
    "ConvertReport": "qtool.workflows.convert.request",
    "ConvertRequest": "qtool.workflows.convert.request",
    "DataRequest": "qtool.workflows.quantize.data_request",
    "DataSource": "qtool.workflows.report.report_data",
    "DequantizeReport": "qtool.workflows.quantize.dequantize",
    "DequantizeRequest": "qtool.workflows.quantize.dequantize",
    "DynamicReport": "qtool.workflows.quantize.dynamic_request",
    "DynamicRequest": "qtool.workflows.quantize.dynamic_request",
    "DynamicScheme": "qtool.schemes",
    "Effort": "qtool.workflows.tune.efforts",
    "MergeReport": "qtool.workflows.lora.request",
    "MergeRequest": "qtool.workflows.lora.request",
    "ModelSource": "qtool.workflows.convert.model_source",
    "NodeSelection": "qtool.selection",
    "Progress": "qtool.progress",
    "QtoolError": "qtool.errors",
    "QuantizeReport": "qtool.workflows.quantize.request",
    "QuantizeRequest": "qtool.workflows.quantize.request",
    "Report": "qtool.reporting.model",
    "ReportRequest": "qtool.workflows.report.report",
    "Scheme": "qtool.schemes",
    "TargetFormat": "qtool.workflows.convert.target_format",
    "TextOptions": "qtool.calib.datasets.text_file",
    "Timing": "qtool.workflows.tune.timing",
    "WeightOnlyReport": "qtool.workflows.quantize.weight_only_request",
    "WeightOnlyRequest": "qtool.workflows.quantize.weight_only_request",
    "WeightOnlyScheme": "qtool.schemes",
    "convert": "qtool.workflows.convert.convert",
    "dequantize": "qtool.workflows.quantize.dequantize",
    "merge_lora": "qtool.workflows.lora.merge_weights",
    "parse_gate": "qtool.reporting.gates",
    "quantize": "qtool.workflows.quantize.quantize",
    "quantize_dynamic": "qtool.workflows.quantize.quantize_dynamic",
    "quantize_weights": "qtool.workflows.quantize.quantize_weights",
    "report": "qtool.workflows.report.report",
    "searches": "qtool.workflows.tune.efforts",
}
# What a module calls otherwise than the API does.
_NAMES_AT_HOME: Mapping[str, str] = {"report": "compare"}


def __getattr__(name: str) -> object:
    """Loads what the API calls ``name``."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qtool' has no attribute '{name}'")
    value: object = getattr(import_module(_HOMES[name]), _NAMES_AT_HOME.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the API, loaded or not."""
    return sorted({*globals(), *_HOMES})
