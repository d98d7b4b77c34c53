"""Sensitivity to bits: what each weight loses at 2, 4 and 8 bits, and what mixed bits make of it for a size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.json_values import json_value
from qtool.metrics.size import model_bytes
from qtool.planning import build_weight_only_plan
from qtool.private_folder import private_folder
from qtool.progress import Progress
from qtool.schemes import WeightOnlyScheme
from qtool.search.blocks.rounding import matrix_of
from qtool.search.mixed_bits import FLOAT_BITS
from qtool.selection import NodeSelection
from qtool.weights.blocks.choices import BlockMethod
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.diagnose.analysis_files import AnalysisFiles
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.prepare import prepare
from qtool.workflows.quantize.prepared_model import single_sample
from qtool.workflows.tune.activation_memory import ActivationMemory
from qtool.workflows.tune.weight_only.bits_forms import BitsForms, measured_forms
from qtool.workflows.tune.weight_only.bits_search import bits_for_sqnr
from qtool.workflows.tune.weight_only.choice import WeightOnlyChoice
from qtool.workflows.tune.weight_only.evaluation import WeightOnlyEvaluation

BITS = (2, 4, 8)
# What the curve marks, in dB.
_MARKS = (15.0, 20.0, 25.0, 30.0, 35.0, 40.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsSensitivityRequest:
    """The options of the analysis.

    Attributes:
        source: the float model.
        data: the samples, for the rounding and for the evaluation.
        scheme: blocks and symmetry of the weights.
        selection: which nodes may be quantized.
        samples: about how many samples to evaluate on.
        output: a .json or .csv file to write as well.
        plot: a chart of the curve to draw as well.
        threads: threads inside an operator; 0 is one per core.
        force: whether existing files may be replaced.
    """

    source: ModelSource
    data: DataRequest
    scheme: WeightOnlyScheme
    selection: NodeSelection = field(default_factory=NodeSelection)
    samples: int = 8
    output: Path | None = None
    plot: Path | None = None
    threads: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLoss:
    """What one weight does to the outputs, all others being float.

    Attributes:
        tensor: its name.
        layers: the layers that read it.
        float_bytes: its size in float.
        sqnr_db: of the worst output, by bits; infinite without any noise.
        saved_bytes: what it takes less than in float, by bits.
    """

    tensor: str
    layers: tuple[str, ...]
    float_bytes: int
    sqnr_db: dict[int, float]
    saved_bytes: dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A model with mixed bits.

    Attributes:
        goal: what its bits were chosen for.
        file_bytes: the size of its file.
        sqnr_db: of the worst output, as measured.
        weights: how many weights have so many bits; 32 are float.
    """

    goal: str
    file_bytes: float
    sqnr_db: float
    weights: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsSensitivityReport:
    """The weights with the most to lose first, and the curve from small to large files.

    Attributes:
        weights: by their loss at 4 bits.
        curve: from the fewest bits to 8 bits for all.
        method: what rounded the weights.
        float_bytes: the size of the float model.
    """

    weights: tuple[WeightLoss, ...]
    curve: tuple[CurvePoint, ...]
    method: BlockMethod
    float_bytes: int

    def as_json(self) -> dict[str, object]:
        """Returns the report as values for JSON; an infinite SQNR is null."""
        return {
            "schema": "qtool.bits_sensitivity/1",
            "method": self.method.value,
            "float_bytes": self.float_bytes,
            "weights": [
                {**asdict(row), "sqnr_db": {bits: json_value(db) for bits, db in row.sqnr_db.items()}}
                for row in self.weights
            ],
            "curve": [{**asdict(point), "sqnr_db": json_value(point.sqnr_db)} for point in self.curve],
        }


def bits_sensitivity(request: BitsSensitivityRequest, progress: Progress) -> BitsSensitivityReport:
    """Rounds every weight to 2, 4 and 8 bits, measures each alone at the outputs, and mixes them for several goals.

    Raises:
        UsageError: an output has an unknown suffix.
        QtoolError: the model, the data or an output cannot be used; see the subclasses.
        FormatError: the model file cannot be read.
        CalibError: the data does not fit the model.
    """
    files = AnalysisFiles(output=request.output, plot=request.plot, force=request.force)
    files.check(figures="weights.csv", picture="curve.png")
    dataset = request.data.open()
    original = request.source.load(progress, dataset=dataset)
    common.NameFixPass()(original)
    model = prepare(original.clone(), integers_between_layers=False)
    plan = build_weight_only_plan(model, request.scheme, request.selection)
    memory = ActivationMemory.of(model, single_sample(original, dataset, request.data))
    samples = CheckSamples(dataset=dataset, data=request.data, holdout=HoldoutSplit(), memory=memory)
    float_bytes = model_bytes(request.source.path)
    with private_folder() as folder:
        evaluation = WeightOnlyEvaluation(
            original,
            model,
            request.scheme,
            samples,
            folder,
            evaluation_samples=request.samples,
            threads=request.threads,
        )
        forms = measured_forms(evaluation, plan, progress, more_bits=BITS)
        losses = _losses(evaluation, forms, model, progress)
        other_bytes = float_bytes - sum(row.float_bytes for row in losses)
        curve = _curve(evaluation, forms, other_bytes, progress)
    report = BitsSensitivityReport(
        weights=tuple(sorted(losses, key=lambda row: row.sqnr_db[4])),
        curve=curve,
        method=forms.method,
        float_bytes=float_bytes,
    )
    title = f"File size and accuracy of {request.source.path.name} with mixed bits"
    files.write(report.as_json(), _rows(report), partial(_draw, report, title=title))
    return report


def _losses(
    evaluation: WeightOnlyEvaluation, forms: BitsForms, model: ir.Model, progress: Progress
) -> list[WeightLoss]:
    found = []
    with progress.task("measuring bits", len(forms.plan.weights)) as advance:
        for name, item in forms.plan.weights.items():
            floats = matrix_of(model, name).nbytes
            sizes = {option.bits: option.size for option in forms.options[name]}
            found.append(
                WeightLoss(
                    tensor=name,
                    layers=item.nodes,
                    float_bytes=floats,
                    sqnr_db={bits: evaluation.sqnr_db(forms.alone(name, bits)) for bits in BITS},
                    saved_bytes={bits: floats - sizes[bits] for bits in BITS},
                )
            )
            advance(1)
    return found


def _curve(
    evaluation: WeightOnlyEvaluation, forms: BitsForms, other_bytes: float, progress: Progress
) -> tuple[CurvePoint, ...]:
    """Returns the models with 4 and 8 bits alone, and those with mixed bits for every mark between the two."""
    forms = forms.usual()
    ends = {bits: forms.mixed(dict.fromkeys(forms.plan.weights, bits)) for bits in (4, 8)}
    reached = {bits: evaluation.sqnr_db(choice) for bits, choice in ends.items()}
    points = [_point(f"{bits} bits", forms, ends[bits], other_bytes, reached[bits]) for bits in ends]
    with progress.task("mixing bits", len(_MARKS)) as advance:
        for mark in _MARKS:
            if mark < reached[8]:
                choice, sqnr_db = bits_for_sqnr(evaluation, forms, forms.mixed, mark)
                points.append(_point(f"{mark:.0f} dB", forms, choice, other_bytes, sqnr_db))
            advance(1)
    return tuple(sorted(points, key=lambda point: point.file_bytes))


def _point(goal: str, forms: BitsForms, choice: WeightOnlyChoice, other_bytes: float, sqnr_db: float) -> CurvePoint:
    bits = {name: item.grid.bits for name, item in choice.plan.weights.items()}
    sizes = [
        next(option.size for option in options if option.bits == bits.get(name, FLOAT_BITS))
        for name, options in forms.options.items()
    ]
    counts = Counter(bits.get(name, FLOAT_BITS) for name in forms.options)
    return CurvePoint(
        goal=goal, file_bytes=other_bytes + sum(sizes), sqnr_db=sqnr_db, weights=dict(sorted(counts.items()))
    )


def _rows(report: BitsSensitivityReport) -> Iterator[Sequence[object]]:
    columns = [f"{column}_{bits}_bits" for bits in BITS for column in ("sqnr_db", "saved_bytes")]
    yield "tensor", "layers", "float_bytes", *columns
    for row in report.weights:
        figures = []
        for bits in BITS:
            sqnr = row.sqnr_db[bits]
            figures += [f"{sqnr:.3f}" if math.isfinite(sqnr) else "", f"{row.saved_bytes[bits]:.0f}"]
        yield row.tensor, " ".join(row.layers), row.float_bytes, *figures


def _draw(report: BitsSensitivityReport, path: Path, *, title: str) -> None:
    from qtool.reporting.charts import CurvePoint as Point
    from qtool.reporting.charts import draw_curve

    points = [
        Point(x=point.file_bytes / 1e6, y=point.sqnr_db, label=point.goal)
        for point in report.curve
        if math.isfinite(point.sqnr_db)
    ]
    if points:
        subtitle = f"weights rounded by {report.method.value}; float is {report.float_bytes / 1e6:.1f} MB"
        draw_curve(path, title, subtitle, points, x_label="file in MB", y_label="SQNR of the worst output in dB")
