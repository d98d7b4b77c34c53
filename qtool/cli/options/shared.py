"""The arguments and options that more than one command takes, each with one name, one help text and one type.

A command names what it takes and gives the default: ``force: ForceOption = False``. What a command needs beyond
these it declares itself. Nothing heavy may be imported here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

_DEBUG_KEY = "qtool.debug"


def debug_is_on(context: typer.Context) -> bool:
    """Tells whether the command that runs in ``context`` was given ``--debug``."""
    return bool(context.meta.get(_DEBUG_KEY))


def _remember_debug(context: typer.Context, value: bool) -> bool:
    # The error boundary stands outside of the command, where the command's own parameters are gone.
    context.meta[_DEBUG_KEY] = value
    return value


ModelArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Model file: .onnx, .pth, .pt or .safetensors.", show_default=False)
]
OptionalModelArgument: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Model file: .onnx, .pth, .pt or .safetensors. Default: `model` in qtool.toml.",
        show_default=False,
    ),
]
OutputOption: TypeAlias = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write the result.", show_default=False)
]
OutputDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output-dir", metavar="FOLDER", help="Folder of results that -o does not name.", show_default=False),
]
ForceOption: TypeAlias = Annotated[bool, typer.Option("--force", "-f", help="Replace a result that exists.")]

CalibDataOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--calib-data",
        metavar="DATA",
        help="Calibration data: .npz, a folder of arrays or images, or pkg.module:function.",
        show_default=False,
    ),
]
CalibDataListOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--calib-data",
        metavar="DATA",
        help="Calibration data: .npz, a folder of arrays or images, or pkg.module:function. Repeatable.",
        show_default=False,
    ),
]
EvalDataOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Evaluation data: .npz, a folder of arrays or images, or pkg.module:function.",
        show_default=False,
    ),
]
PreprocessOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="TEXT",
        help="How images become arrays, such as 'imagenet' or 'size=224x224,layout=nchw,mean=0.5,std=0.5'.",
        show_default=False,
    ),
]
BatchSizeOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Samples a run. Default: 4 where the model and the data allow it, otherwise 1.",
        show_default=False,
    ),
]
LimitOption: TypeAlias = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use only the first so many samples.", show_default=False)
]
ThreadsOption: TypeAlias = Annotated[
    int, typer.Option("--threads", min=0, help="Threads that onnxruntime uses; 0 is one a core.")
]

FactoryOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FACTORY",
        help="What builds the torch module or Keras model of the weights: pkg.module:factory, file.py:factory, "
        "timm:NAME, torchvision:NAME or transformers:FOLDER.",
        show_default=False,
    ),
]
FactoryKwargsOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--model-kwargs", metavar="JSON", help="Keyword arguments for the factory.", show_default=False),
]
TrustPickleOption: TypeAlias = Annotated[
    bool, typer.Option("--trust-pickle", help="Run what the model file brings: whole modules, any Python objects.")
]
AllowGlobalOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-global",
        metavar="PKG.CLASS",
        help="Let the model file use this class or function, and no other; repeatable.",
        show_default=False,
    ),
]
InputShapeOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME=DIMS",
        help="Shape of an input: image=batch,3,224,224, or ids=batch,length:int64 with a type; repeat for more inputs.",
        show_default=False,
    ),
]

# The presets of qtool.schemes, whose import costs more than `--help` may take; a test compares the two.
TARGETS = {
    "auto": "this machine",
    "x86": "any x86: sums are exact with VNNI and without, for fleets",
    "x86-vnni": "x86 with VNNI, AVX-512, AVX or AMX",
    "x86-avx2": "x86 without VNNI",
    "arm64": "64-bit ARM",
    "tensorrt": "NVIDIA GPUs",
    "qnn": "Qualcomm NPUs",
    "openvino": "Intel CPUs, GPUs and NPUs through OpenVINO",
}
_TARGET_LINES = "".join(f"\n\n{name}: {machine}." for name, machine in TARGETS.items())
TargetOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="NAME", help=f"Machine to run on; default auto.{_TARGET_LINES}", show_default=False
    ),
]
# For commands that need no machine, as long as none is named.
OptionalTargetOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help=f"Machine to run on.{_TARGET_LINES}", show_default=False),
]

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON, alone, on stdout.")]
QuietOption: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Print only JSON, warnings and errors.")]
DebugOption: TypeAlias = Annotated[
    bool,
    typer.Option("--debug", is_eager=True, callback=_remember_debug, help="Show tracebacks and what libraries say."),
]
