"""``qtool finetune``: quantization-aware training by distillation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.cli.console import Console
from qtool.cli.locking import lock_of, recorded_arguments, run_locked
from qtool.cli.options.groups import DATA, OUTPUT, SPEED, TRAINING
from qtool.cli.options.shared import (
    BatchSizeOption,
    CalibDataListOption,
    DebugOption,
    ForceOption,
    JsonOption,
    LimitOption,
    OutputOption,
    PreprocessOption,
    QuietOption,
    ThreadsOption,
)
from qtool.errors import UsageError

if TYPE_CHECKING:
    from qtool.workflows.learn.request import FinetuneReport


def finetune(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Quantized ONNX model, as `qtool quantize` wrote it.")
    ] = None,
    calib_data: CalibDataListOption = None,
    float_model: Annotated[
        Path | None,
        typer.Option(
            "--float", metavar="MODEL", help="Float model. Default: that of the manifest.", rich_help_panel=DATA
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Batches to learn from.", rich_help_panel=TRAINING)
    ] = 400,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss",
            metavar="NAME",
            help="kl, mse, cosine, or file.py:function. Default: kl for class scores, mse else.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="X",
            min=0.0,
            help="First rate, as a multiple of the usual one. Default: by the SQNR.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    augment: Annotated[
        str,
        typer.Option(
            "--augment",
            metavar="HOW",
            help="Vary images: shift, flip, shift,flip or none.",
            rich_help_panel=TRAINING,
        ),
    ] = "shift,flip",
    time_budget: Annotated[
        float | None,
        typer.Option(
            "--time-budget", metavar="SECONDS", min=0.0, help="End earlier, with the best.", rich_help_panel=TRAINING
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="auto, cpu or cuda.", rich_help_panel=SPEED)
    ] = "auto",
    preprocess: PreprocessOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    threads: ThreadsOption = 0,
    output: OutputOption = None,
    locked: Annotated[
        Path | None,
        typer.Option(
            "--locked",
            metavar="MANIFEST",
            help="Repeat this run, byte for byte.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Trains a quantized model by distillation (QAT).

    It learns to give the float model's outputs, and needs no labels. Scales, integers and biases are learned with fake
    quantization; what runs on integers stays the same. Ctrl-C ends it with the best so far. A run that is killed goes
    on where it was when it is started again.
    """
    if locked is not None:
        run_locked(finetune, context, locked)
        return
    from qtool.learn.augmentation import variations_named
    from qtool.learn.distillation import Schedule
    from qtool.workflows.learn.finetune import finetune as run
    from qtool.workflows.learn.request import FinetuneRequest
    from qtool.workflows.quantize.data_request import data_request

    console = Console(json=json, quiet=quiet, debug=debug)
    if model is None:
        raise UsageError("no model is given", fix="name a quantized model, or pass --locked MANIFEST")
    if not calib_data:
        raise UsageError("no calibration data is given", fix="pass --calib-data DATA, or set calib_data in qtool.toml")
    report = run(
        FinetuneRequest(
            model=model,
            data=data_request(calib_data, preprocess=preprocess, batch_size=batch_size, limit=limit),
            float_model=float_model,
            output=output,
            loss=loss,
            device=device,
            schedule=Schedule(steps=steps, budget_s=time_budget, learning_rate=learning_rate),
            variations=variations_named(augment),
            threads=threads,
            force=force,
            locked=lock_of(context),
            arguments=recorded_arguments(context),
        ),
        console.progress(),
    )
    if json:
        console.json(_as_json(report))
    else:
        _show(console, report)


def _as_json(report: FinetuneReport) -> dict[str, object]:
    return {
        "schema": "qtool.finetune/1",
        "output": str(report.output),
        "float_model": str(report.float_model),
        "device": report.device,
        "learning_rate": report.learning_rate,
        "augmented": list(report.varied),
        "checks": [asdict(check) for check in report.checks],
        "step": report.best.step,
        "ended": report.ended,
        "gained": report.gained,
        "without_gradient": dict(report.foreign),
        "integer_nodes": report.coverage.integer,
        "quantizable_nodes": report.coverage.total,
        "compared_on": report.compared_on,
        "before": {output.name: output.sqnr_db for output in report.before},
        "after": {output.name: output.sqnr_db for output in report.fidelity},
        "bytes": report.bytes,
    }


def _show(console: Console, report: FinetuneReport) -> None:
    rows = [
        (
            str(check.step),
            "" if check.training_loss is None else f"{check.training_loss:.3g}",
            f"{check.loss:.3g}",
            f"{check.sqnr_db:.2f}",
            "kept" if check == report.best else "",
        )
        for check in report.checks
    ]
    rate = f"learning rate {report.learning_rate:.2g}"
    varied = f"; varied: {', '.join(report.varied)}" if report.varied else ""
    console.table(
        "Training",
        ("step", "training loss", "loss", "SQNR in dB", ""),
        rows,
        f"on {report.device}; {rate}{varied}; {report.ended}",
    )
    pairs = zip(report.before, report.fidelity, strict=True)
    figures = [(now.name, _decibels(before.sqnr_db), _decibels(now.sqnr_db)) for before, now in pairs]
    caption = f"compared on {report.compared_on}"
    console.table("Closeness to float", ("output", "SQNR before, in dB", "after"), figures, caption)
    if not report.gained:
        console.say("held-back samples gain nothing: the model was written as it was")
    console.say(f"on integers: {report.coverage.integer} of {report.coverage.total} nodes, as before")
    console.say(f"wrote {report.output}: {report.bytes:,} bytes")


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.2f}"
