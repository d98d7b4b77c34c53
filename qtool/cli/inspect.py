"""``qtool inspect``: what is in a model file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from qtool.cli.adapter_output import show_adapter
from qtool.cli.console import Console
from qtool.cli.model_options import input_shapes, model_path, trust
from qtool.cli.options import (
    AllowGlobalOption,
    DebugOption,
    InputShapeOption,
    JsonOption,
    OptionalModelArgument,
    QuietOption,
    TrustPickleOption,
)
from qtool.errors import UsageError


def inspect(
    model: OptionalModelArgument = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    largest: Annotated[int, typer.Option("--largest", min=0, help="How many of the largest tensors to name.")] = 10,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Tells what a model is: inputs, operators, parameters, work, and how much of it is quantized."""
    from qtool.lora.recognition import is_adapter
    from qtool.workflows.inspect import inspect_model

    console = Console(json=json, quiet=quiet, debug=debug)
    path = model_path(model)
    if is_adapter(path):
        show_adapter(console, path, json=json)
        return
    shapes = input_shapes(input_shape)
    if shapes.dtypes:
        raise UsageError(
            "--input-shape gives a type, and a graph's inputs have theirs", fix="leave out what follows ':'"
        )
    report = inspect_model(path, input_shapes=shapes.dims, largest=largest, trust=trust(trust_pickle, allow_global))
    if json:
        console.json({**asdict(report), "path": str(report.path)})
        return
    _show(console, report)


def _show(console: Console, report: Any) -> None:
    rows: list[tuple[str, object]] = [
        ("kind", report.kind),
        ("size", f"{report.nbytes:,} bytes" + "".join(f" + {name}" for name in report.data_files)),
    ]
    if report.tensors:
        rows.append(("parameters", f"{report.parameters:,} in {report.tensors} tensors"))
    if report.graph is not None:
        rows += _graph_rows(report.graph)
    if report.program is not None:
        rows += _program_rows(report.program)
    rows += [("metadata", f"{key} = {value[:80]}") for key, value in report.metadata.items()]
    console.table(str(report.path), ("", ""), rows)
    program = report.graph or report.program
    if program is not None and program.operators:
        console.table("Operators", ("operator", "nodes"), list(program.operators.items()))
    if report.tensors:
        console.table(
            "Parameters by type",
            ("type", "tensors", "parameters", "bytes"),
            [
                (name, facts.tensors, f"{facts.parameters:,}", f"{facts.nbytes:,}")
                for name, facts in report.dtypes.items()
            ],
        )
    if report.largest:
        console.table(
            "Largest tensors",
            ("tensor", "type", "shape", "bytes"),
            [
                (tensor.name, tensor.dtype, " × ".join(map(str, tensor.shape)), f"{tensor.nbytes:,}")
                for tensor in report.largest
            ],
        )


def _graph_rows(graph: Any) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("producer", graph.producer or "not named"),
        ("opset", ", ".join(f"{domain} {version}" for domain, version in graph.opsets.items())),
        *_input_rows(graph),
        *(("output", text) for text in graph.outputs),
        ("multiply-adds", _work(graph.multiply_adds)),
    ]
    quantization = graph.quantization
    if not (quantization.quantize_nodes or quantization.dequantize_nodes or quantization.integer_nodes):
        return [*rows, ("quantized", "no")]
    return [
        *rows,
        (
            "quantized",
            f"{quantization.quantized_layers} of {quantization.layers} layers, "
            f"{_share(quantization.quantized_parameters, quantization.weight_parameters)} of the weights, "
            f"{_share(graph.multiply_adds.quantized, graph.multiply_adds.total)} of the multiply-adds",
        ),
        (
            "quantizing nodes",
            f"{quantization.quantize_nodes} QuantizeLinear, {quantization.dequantize_nodes} DequantizeLinear, "
            f"{quantization.integer_nodes} of integer type",
        ),
    ]


def _program_rows(program: Any) -> list[tuple[str, object]]:
    return [
        ("producer", program.producer),
        *_input_rows(program),
        *(("output", text) for text in program.outputs),
        *(("note", text) for text in program.warnings),
    ]


def _input_rows(program: Any) -> list[tuple[str, object]]:
    layouts = {f"{name} ": f", {layout.upper()}" for name, layout in program.layouts.items()}
    return [
        ("input", text + next((layout for name, layout in layouts.items() if text.startswith(name)), ""))
        for text in program.inputs
    ]


def _work(work: Any) -> str:
    assumed = ", ".join(f"{name}={length}" for name, length in work.assumed.items())
    text = f"{work.total:,} in {work.known_nodes} nodes{f' ({assumed})' if assumed else ''}"
    if work.unknown_nodes:
        text += f"; {work.unknown_nodes} nodes of unknown shape (give lengths with --input-shape)"
    return text


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
