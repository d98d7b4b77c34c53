"""``qtool convert``: another format, with the proof that it computes the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.options.groups import CONVERSION, OUTPUT, TENSORFLOW
from qtool.cli.options.model import architecture, input_shapes, model_path, trust
from qtool.cli.options.shared import (
    AllowGlobalOption,
    CalibDataOption,
    DebugOption,
    FactoryKwargsOption,
    FactoryOption,
    ForceOption,
    InputShapeOption,
    JsonOption,
    OptionalModelArgument,
    OutputDirOption,
    OutputOption,
    PreprocessOption,
    QuietOption,
    TrustPickleOption,
)
from qtool.errors import UsageError
from qtool.workflows.convert.target_format import TargetFormat

if TYPE_CHECKING:
    from qtool.formats.onnx.external_data import Storage
    from qtool.workflows.convert.half_precision import Precision
    from qtool.workflows.convert.request import ConvertReport


def convert(
    model: OptionalModelArgument = None,
    to: Annotated[
        TargetFormat, typer.Option("--to", help="Format of the result.", rich_help_panel=CONVERSION)
    ] = TargetFormat.ONNX,
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    factory: FactoryOption = None,
    model_kwargs: FactoryKwargsOption = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    calib_data: CalibDataOption = None,
    preprocess: PreprocessOption = None,
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", help="ONNX opset of the result.", rich_help_panel=CONVERSION)
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Compute in float16 where its range suffices.", rich_help_panel=CONVERSION)
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.", rich_help_panel=CONVERSION)] = False,
    half_io: Annotated[
        bool,
        typer.Option("--half-io", help="With --fp16 or --bf16: inputs and outputs too.", rich_help_panel=CONVERSION),
    ] = False,
    external_data: Annotated[
        bool, typer.Option("--external-data", help="Keep ONNX weights in a file beside it.", rich_help_panel=OUTPUT)
    ] = False,
    max_shard_mb: Annotated[
        int | None,
        typer.Option(
            "--max-shard-mb",
            metavar="N",
            min=1,
            help="Split external data or safetensors at this size.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--inputs", metavar="NODES", help="Frozen graph: nodes to feed, with commas.", rich_help_panel=TENSORFLOW
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--outputs", metavar="NODES", help="Frozen graph: nodes to read, with commas.", rich_help_panel=TENSORFLOW
        ),
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(
            "--signature",
            metavar="NAME",
            help="SavedModel: what to call. Default: serving_default.",
            rich_help_panel=TENSORFLOW,
        ),
    ] = None,
    nchw: Annotated[
        bool, typer.Option("--nchw", help="Put channels of image inputs first.", rich_help_panel=TENSORFLOW)
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Converts a model, and compares the result with the original.

    From torch, Keras, TensorFlow, safetensors or ONNX to ONNX, OpenVINO, TFLite, .pth or safetensors; both run on real
    or random inputs.
    """
    from qtool.workflows.convert.convert import convert as run
    from qtool.workflows.convert.request import ConvertRequest
    from qtool.workflows.convert.tensorflow_import import TensorFlowOptions

    console = Console(json=json, quiet=quiet, debug=debug)
    shapes = input_shapes(input_shape)
    report = run(
        ConvertRequest(
            source=model_path(model),
            target=to,
            output=output,
            output_dir=output_dir,
            architecture=architecture(factory, model_kwargs),
            input_shapes=shapes.dims,
            input_dtypes=shapes.dtypes,
            calib_data=calib_data,
            preprocess=preprocess,
            opset=opset,
            precision=_precision(fp16=fp16, bf16=bf16, half_io=half_io),
            storage=_storage(external_data, max_shard_mb, to),
            tensorflow=TensorFlowOptions(
                inputs=_names(inputs), outputs=_names(outputs), signature=signature, channels_first=nchw
            ),
            trust=trust(trust_pickle, allow_global),
            force=force,
        ),
        console.progress(),
    )
    if json:
        console.json(_as_json(report))
    else:
        _show(console, report)


def _precision(*, fp16: bool, bf16: bool, half_io: bool) -> Precision | None:
    from qtool.workflows.convert.half_precision import Precision

    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 exclude each other", fix="give one of them")
    if half_io and not (fp16 or bf16):
        raise UsageError("--half-io has no effect without --fp16 or --bf16", fix="add one of them, or drop --half-io")
    return Precision(name="float16" if fp16 else "bfloat16", half_io=half_io) if fp16 or bf16 else None


def _storage(external: bool, max_shard_mb: int | None, to: TargetFormat) -> Storage:
    from qtool.formats.onnx.external_data import Storage

    if max_shard_mb is not None and not external and to is TargetFormat.ONNX:
        raise UsageError(
            "--max-shard-mb has no effect without --external-data", fix="add --external-data, or drop --max-shard-mb"
        )
    return Storage(external=external, max_shard_bytes=None if max_shard_mb is None else max_shard_mb * 1_000_000)


def _names(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for text in texts or () for name in text.split(",") if name.strip())


def _show(console: Console, report: ConvertReport) -> None:
    rows: list[tuple[str, object]] = [
        ("from", f"{report.source} ({report.source_kind}, {report.source_bytes:,} bytes)"),
        ("to", f"{report.output} ({report.output_bytes:,} bytes)"),
    ]
    rows += [] if report.opset is None else [("opset", report.opset)]
    if report.inputs:
        rows += [("inputs", "; ".join(report.inputs)), ("outputs", "; ".join(report.outputs))]
    if report.integer_layers is not None:
        layers = report.integer_layers
        rows.append(("layers on integers", f"{layers.integer} of {layers.total}, here"))
    if report.tensors is not None:
        rows.append(("tensors", f"{report.tensors}, copied as they are"))
    console.table("Converted", ("", ""), rows)
    if report.comparisons:
        _show_kept(console, report)
        console.table(
            "Largest difference from the original",
            ("inputs", "sizes", "output", "absolute", "of its largest value"),
            [
                (
                    comparison.data,
                    ", ".join(f"{name}={length}" for name, length in comparison.sizes.items()) or "fixed",
                    output.output,
                    f"{output.absolute:.2e}",
                    f"{output.relative:.2e}",
                )
                for comparison in report.comparisons
                for output in comparison.outputs
            ],
        )


def _show_kept(console: Console, report: ConvertReport) -> None:
    alike: dict[tuple[str, str], list[str]] = {}
    for kept in report.kept_float:
        alike.setdefault((kept.op_type, kept.reason), []).append(kept.node)
    if alike:
        console.table(
            "Kept in float32",
            ("node", "operator", "because"),
            [
                (names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", op_type, reason)
                for (op_type, reason), names in alike.items()
            ],
        )


def _as_json(report: ConvertReport) -> dict[str, object]:
    return {
        "source": str(report.source),
        "source_kind": report.source_kind,
        "source_bytes": report.source_bytes,
        "output": str(report.output),
        "output_bytes": report.output_bytes,
        "format": report.target.value,
        "opset": report.opset,
        "inputs": list(report.inputs),
        "outputs": list(report.outputs),
        "left_out_outputs": list(report.left_out),
        "tensors": report.tensors,
        "integer_layers": None if report.integer_layers is None else asdict(report.integer_layers),
        "kept_float": [
            {"node": kept.node, "operator": kept.op_type, "reason": kept.reason} for kept in report.kept_float
        ],
        "comparisons": [
            {
                "data": comparison.data,
                "sizes": dict(comparison.sizes),
                "outputs": [
                    {"output": output.output, "absolute": output.absolute, "relative": output.relative}
                    for output in comparison.outputs
                ],
            }
            for comparison in report.comparisons
        ],
    }
