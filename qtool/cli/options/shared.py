"""The arguments and options that more than one command takes, each with one name, one help text and one type.

A command names what it takes and gives the default: ``force: ForceOption = False``. What a command needs beyond
these it declares itself. Nothing heavy may be imported here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from qtool.backends.targets import AUTO, PRESETS
from qtool.cli.options.groups import DATA, GENERAL, MODEL, OUTPUT, SCHEME, SPEED, TARGET

_DEBUG_KEY = "qtool.debug"


def debug_is_on(context: typer.Context) -> bool:
    """Tells whether the command that runs in ``context`` was given ``--debug``."""
    return bool(context.meta.get(_DEBUG_KEY))


def _remember_debug(context: typer.Context, value: bool) -> bool:
    # The error boundary stands outside of the command, where the command's own parameters are gone.
    context.meta[_DEBUG_KEY] = value
    return value


ModelArgument: TypeAlias = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX model.")]
OptionalModelArgument: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL", help="Model file: .onnx, .pth, .pt or .safetensors. Default: `model` in qtool.toml."
    ),
]
OutputOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the result here.", rich_help_panel=OUTPUT),
]
OutputDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output-dir", metavar="FOLDER", help="Folder of results without -o.", rich_help_panel=OUTPUT),
]
ForceOption: TypeAlias = Annotated[
    bool, typer.Option("--force", "-f", help="Overwrite existing results.", rich_help_panel=OUTPUT)
]

CalibDataOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--calib-data",
        metavar="DATA",
        help="Calibration data: .npz, .txt, folder or pkg.module:function.",
        rich_help_panel=DATA,
    ),
]
CalibDataListOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--calib-data",
        metavar="DATA",
        help="Calibration data: .npz, .txt, folder or pkg.module:function; repeatable.",
        rich_help_panel=DATA,
    ),
]
EvalDataOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DATA", help="Evaluation data: .npz, folder or pkg.module:function.", rich_help_panel=DATA
    ),
]
PreprocessOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="TEXT",
        help="Images: imagenet, or size=224x224,mean=0.5,...",
        rich_help_panel=DATA,
    ),
]
BatchSizeOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        help="Samples per run. Default: 4, or as fixed.",
        rich_help_panel=DATA,
    ),
]
LimitOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Use the first N samples only.", rich_help_panel=DATA),
]
ThreadsOption: TypeAlias = Annotated[
    int,
    typer.Option("--threads", metavar="N", min=0, help="Threads; 0 for one per core.", rich_help_panel=SPEED),
]

FactoryOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FACTORY",
        help="Builds the module: file.py:factory, timm:NAME, torchvision:NAME or transformers:FOLDER.",
        rich_help_panel=MODEL,
    ),
]
FactoryKwargsOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--model-kwargs", metavar="JSON", help="Keyword arguments of the factory.", rich_help_panel=MODEL),
]
TrustPickleOption: TypeAlias = Annotated[
    bool, typer.Option("--trust-pickle", help="Let the model file run any code.", rich_help_panel=MODEL)
]
AllowGlobalOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-global",
        metavar="PKG.CLASS",
        help="Allow one class or function; repeatable.",
        rich_help_panel=MODEL,
    ),
]
InputShapeOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME=DIMS",
        help="Shape of an input, such as image=batch,3,224,224 or ids=batch,length:int64; repeatable.",
        rich_help_panel=MODEL,
    ),
]

_MACHINES = "".join(f"\n{name}: {scheme.standing}" for name, scheme in PRESETS.items())
_TARGET_LINES = f"\n{AUTO}: this machine{_MACHINES}"


def _target_names() -> list[str]:
    return [AUTO, *PRESETS]


TargetOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help=f"Machine to run on; {AUTO} unless given:{_TARGET_LINES}",
        autocompletion=_target_names,
        rich_help_panel=SCHEME,
    ),
]
# For commands that need no machine, as long as none is named.
OptionalTargetOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help=f"Machine to run on:{_TARGET_LINES}",
        autocompletion=_target_names,
        rich_help_panel=TARGET,
    ),
]

JsonOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, alone, on stdout.", rich_help_panel=GENERAL)
]
QuietOption: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only JSON, warnings and errors.", rich_help_panel=GENERAL)
]
DebugOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--debug",
        is_eager=True,
        callback=_remember_debug,
        help="Show tracebacks and the messages of libraries.",
        rich_help_panel=GENERAL,
    ),
]
