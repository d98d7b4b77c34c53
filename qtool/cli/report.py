"""The command that compares quantized models with their float model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.model_options import model_source, trust
from qtool.cli.options import (
    AllowGlobalOption,
    DebugOption,
    EvalDataOption,
    FactoryKwargsOption,
    FactoryOption,
    ForceOption,
    InputShapeOption,
    JsonOption,
    LimitOption,
    OutputDirOption,
    PreprocessOption,
    QuietOption,
    ThreadsOption,
    TrustPickleOption,
)
from qtool.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """The models and the data to report on."""

    float_model: Path
    quantized_models: tuple[Path, ...]
    data: str
    preprocess: str | None
    is_calibration_data: bool = False


def report(
    float_model: Annotated[
        Path | None,
        typer.Argument(metavar="FLOAT", help="The float model. Default: that of the newest run.", show_default=False),
    ] = None,
    quantized_models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="QUANTIZED...",
            help="Quantized models, one or several. Default: that of the newest run.",
            show_default=False,
        ),
    ] = None,
    data: EvalDataOption = None,
    preprocess: PreprocessOption = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels", metavar="NAME", help="Array of class indices. Default: '_label', if any.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="Samples a run. Default: what the models fix, or 16.", show_default=False
        ),
    ] = None,
    limit: LimitOption = None,
    factory: FactoryOption = None,
    model_kwargs: FactoryKwargsOption = None,
    input_shape: InputShapeOption = None,
    trust_pickle: TrustPickleOption = False,
    allow_global: AllowGlobalOption = None,
    threads: ThreadsOption = 0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds in which all models are timed.")] = 25,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Do not time the models.")] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="CONDITION",
            help="Exit with 1 if this holds, such as 'top1_drop > 0.5' or 'speedup < 1.3'; repeatable.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            help="Exit with 1 if a figure is worse than in this earlier report, a .json that -o wrote.",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the report as Markdown, alone, on stdout.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write the report there too, .json or .md.", show_default=False
        ),
    ] = None,
    output_dir: OutputDirOption = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Compares quantized models with their float model: outputs, accuracy, time, size and memory.

    Without models, it reports on the newest run of `qtool quantize` in the output folder.
    """
    import json as json_module

    from calib.datasets.images import Preprocess
    from qtool.atomic import check_output, staged
    from qtool.report.baseline import read_baseline
    from qtool.report.gates import enforce, parse_gate
    from qtool.report.json import to_json
    from qtool.report.markdown import to_markdown
    from qtool.report.table import tables
    from qtool.workflows.report import ReportRequest, compare

    if json and markdown:
        raise UsageError("--json and --markdown exclude each other", fix="choose one, and -o FILE for the other")
    gates = tuple(parse_gate(text) for text in fail_if or ())
    earlier = None if baseline is None else read_baseline(baseline)
    if output is not None:
        _check_suffix(output)
        check_output(output, force=force)
    console = Console(json=json or markdown, quiet=quiet, debug=debug)
    chosen = _choose(float_model, tuple(quantized_models or ()), data, preprocess, output_dir or Path())
    if chosen.is_calibration_data:
        console.warn(f"{chosen.data} is what the model was calibrated on: new data may show less favourable figures")
    request = ReportRequest(
        float_model=chosen.float_model,
        quantized_models=chosen.quantized_models,
        data=chosen.data,
        conversion=model_source(
            chosen.float_model, factory, model_kwargs, input_shape, trust(trust_pickle, allow_global)
        ),
        preprocess=None if chosen.preprocess is None else Preprocess.parse(chosen.preprocess),
        labels=labels,
        batch_size=batch_size,
        limit=limit,
        threads=threads,
        rounds=rounds,
        latency=not no_latency,
        gates=gates,
        baseline=earlier,
    )
    result = compare(request, console.progress())
    if output is not None:
        as_json = json_module.dumps(to_json(result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with staged(output) as part:
            part.write_text(as_json if output.suffix == ".json" else to_markdown(result), encoding="utf-8")
    if json:
        console.json(to_json(result))
    elif markdown:
        console.document(to_markdown(result))
    else:
        for table in tables(result):
            console.table(table.title, table.columns, table.rows, table.caption)
    for verdict in result.verdicts:
        if verdict.outcome == "unproven":
            console.warn(f"not proven to fail: {verdict.message}")
    enforce(result)


def _check_suffix(output: Path) -> None:
    if output.suffix not in (".json", ".md"):
        raise UsageError(
            f"the name of {output} does not say what to write there", fix="end it in .json or .md: -o report.json"
        )


def _choose(
    float_model: Path | None,
    quantized_models: tuple[Path, ...],
    data: str | None,
    preprocess: str | None,
    folder: Path,
) -> _Chosen:
    """Takes what was given, and the rest from the newest manifest in ``folder``."""
    if float_model is not None and quantized_models:
        if data is None:
            raise UsageError(
                "there is no data to compare the models on", fix="give it with --data, or as eval_data in qtool.toml"
            )
        return _Chosen(float_model=float_model, quantized_models=quantized_models, data=data, preprocess=preprocess)
    if float_model is not None or quantized_models:
        raise UsageError(
            "only one model is given", fix="name both, float model first: qtool report FLOAT.onnx QUANTIZED.onnx"
        )
    from qtool.manifest import newest_manifest

    manifest = newest_manifest(folder)
    if manifest is None:
        raise UsageError(
            f"no model is given, and no run of `qtool quantize` has left its manifest in {folder.resolve()}",
            fix="name both models: qtool report FLOAT.onnx QUANTIZED.onnx --data DATA",
        )
    if data is None and manifest.data is not None:
        data, preprocess = manifest.data, preprocess or manifest.options.get("preprocess")
    chosen = _choose(manifest.float_model.path, (manifest.quantized_model.path,), data, preprocess, folder)
    return replace(chosen, is_calibration_data=chosen.data == manifest.data)
