"""``qtool convert``: another format, with the proof that it computes the same."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from qtool.cli.console import Console
from qtool.cli.model_options import architecture, input_shapes, model_path, trust
from qtool.cli.options import (
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


class To(StrEnum):
    """Is what ``--to`` takes."""

    ONNX = "onnx"
    PTH = "pth"
    SAFETENSORS = "safetensors"


def convert(
    model: OptionalModelArgument = None,
    to: Annotated[To, typer.Option("--to", help="What it becomes.")] = To.ONNX,
    output: OutputOption = None,
    output_dir: OutputDirOption = None,
    factory: FactoryOption = None,
    model_kwargs: FactoryKwargsOption = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    calib_data: CalibDataOption = None,
    preprocess: PreprocessOption = None,
    opset: Annotated[int | None, typer.Option("--opset", help="ONNX opset of the result.", show_default=False)] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--inputs", metavar="NODES", help="TensorFlow graphs: nodes to feed, with commas.", show_default=False
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--outputs", metavar="NODES", help="TensorFlow graphs: nodes to read, with commas.", show_default=False
        ),
    ] = None,
    nchw: Annotated[
        bool, typer.Option("--nchw", help="TensorFlow models: let the channels of image inputs come first.")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Converts a model, and compares the result with the original on real or random inputs."""
    from qtool.workflows.conversion import ConvertRequest, Target
    from qtool.workflows.convert import convert as run
    from qtool.workflows.tensorflow_import import TensorFlowOptions

    console = Console(json=json, quiet=quiet, debug=debug)
    shapes = input_shapes(input_shape)
    report = run(
        ConvertRequest(
            source=model_path(model),
            target=Target(to.value),
            output=output,
            output_dir=output_dir,
            architecture=architecture(factory, model_kwargs),
            input_shapes=shapes.dims,
            input_dtypes=shapes.dtypes,
            calib_data=calib_data,
            preprocess=preprocess,
            opset=opset,
            tensorflow=TensorFlowOptions(inputs=_names(inputs), outputs=_names(outputs), channels_first=nchw),
            trust=trust(trust_pickle, allow_global),
            force=force,
        ),
        console.progress(),
    )
    if json:
        console.json(_as_json(report))
    else:
        _show(console, report)


def _names(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for text in texts or () for name in text.split(",") if name.strip())


def _show(console: Console, report: Any) -> None:
    rows: list[tuple[str, object]] = [
        ("from", f"{report.source} ({report.source_kind}, {report.source_bytes:,} bytes)"),
        ("to", f"{report.output} ({report.output_bytes:,} bytes)"),
    ]
    if report.opset is not None:
        rows += [("opset", report.opset), ("inputs", "; ".join(report.inputs)), ("outputs", "; ".join(report.outputs))]
    if report.tensors is not None:
        rows.append(("tensors", f"{report.tensors}, copied as they are"))
    console.table("Converted", ("", ""), rows)
    if report.comparisons:
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


def _as_json(report: Any) -> dict[str, object]:
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
        "tensors": report.tensors,
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
