"""Quantizes models with qtool, and on request with onnxruntime's own quantizer, and judges the results in one run.

Run: python benchmarks/compare.py FOLDER [MODEL ...] [--rival] [--variant NAME='OPTIONS'] [--json]

FOLDER has one folder a model with ``fp32.onnx``, ``calib.npz`` and ``eval.npz``: one array for each input of the graph,
one row a sample, and in ``eval.npz`` class indices as ``_label`` where there are some. A variant is a set of options
for ``qtool quantize``; the default is one without any, called ``qtool``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from judging import FLOAT, Judgement, judge
from processes import Finished, run

RIVAL_SCRIPT = Path(__file__).with_name("onnxruntime_static.py")
FILES = ("fp32.onnx", "calib.npz", "eval.npz")
COLUMNS = ("model", "made by", "SQNR dB", "agree %", "top-1 %", "ms", "speedup", "MB", "made in s", "peak MB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantized model, or the float model itself."""

    model: str
    made_by: str
    size_mb: float | None
    quantize_seconds: float | None
    quantize_peak_mb: float | None
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Made:
    """What a quantizer wrote, and how its run went."""

    path: Path
    finished: Finished


def main() -> int:
    """Makes, judges and prints; returns 1 where a quantized model could not be made or run."""
    arguments = _arguments()
    rows: list[Row] = []
    for folder in _chosen(arguments.folder, arguments.models):
        print(f"{folder.name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            made = _made(folder, arguments.keep or Path(scratch), arguments.variants, arguments.rival)
            rows += _judged(folder, made, threads=arguments.threads, rounds=arguments.rounds)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _print_table(rows)
    return int(any(row.judgement.error for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judges quantized models side by side.")
    parser.add_argument("folder", type=Path, help="one folder a model, or the folder of one model")
    parser.add_argument("models", nargs="*", help="only these models of the folder")
    parser.add_argument("--rival", action="append", nargs="?", const="minmax", metavar="METHOD", default=[])
    parser.add_argument("--variant", action="append", metavar="NAME=OPTIONS", default=[])
    parser.add_argument("--rounds", type=int, default=25, help="rounds of timing")
    parser.add_argument("--threads", type=int, default=2, help="threads inside an operator")
    parser.add_argument("--keep", type=Path, help="an existing folder for the quantized models")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    arguments.variants = dict(text.split("=", 1) for text in arguments.variant) or {"qtool": ""}
    return arguments


def _chosen(folder: Path, names: Sequence[str]) -> list[Path]:
    candidates = [folder] if (folder / FILES[0]).is_file() else sorted(folder.iterdir())
    whole = [path for path in candidates if all((path / name).is_file() for name in FILES)]
    found = [path for path in whole if not names or path.name in names]
    if not found:
        sys.exit(f"no model in {folder}: each needs a folder with {', '.join(FILES)}")
    return found


def _made(folder: Path, output: Path, variants: Mapping[str, str], rivals: Sequence[str]) -> dict[str, Made]:
    """Returns, for everything that quantizes, what it wrote and how that went."""
    model, calib = str(folder / "fp32.onnx"), str(folder / "calib.npz")
    made = {}
    for name, options in variants.items():
        path = output / f"{folder.name}.{name}.onnx"
        command = (
            "quantize",
            model,
            "--calib-data",
            calib,
            *shlex.split(options),
            "--quiet",
            "--force",
            "-o",
            str(path),
        )
        made[name] = Made(path, run((sys.executable, "-m", "qtool", *command)))
    for method in rivals:
        path = output / f"{folder.name}.onnxruntime-{method}.onnx"
        command = (str(RIVAL_SCRIPT), model, calib, str(path), "--method", method)
        made[f"onnxruntime {method}"] = Made(path, run((sys.executable, *command)))
    return made


def _judged(folder: Path, made: Mapping[str, Made], *, threads: int, rounds: int) -> list[Row]:
    paths = {FLOAT: folder / "fp32.onnx"}
    paths |= {name: result.path for name, result in made.items() if not result.finished.code}
    judgements = judge(paths, folder / "eval.npz", threads=threads, rounds=rounds)
    for name, result in made.items():
        if result.finished.code:
            judgements[name] = Judgement(error=f"not made: {result.finished.last_line}")
    return [
        Row(
            model=folder.name,
            made_by=name,
            size_mb=_size_mb(paths[name]) if name in paths else None,
            quantize_seconds=made[name].finished.seconds if name in made else None,
            quantize_peak_mb=made[name].finished.peak_mb if name in made else None,
            judgement=judgements[name],
        )
        for name in (FLOAT, *made)
    ]


def _size_mb(path: Path) -> float:
    """Returns the size with the external data that lies beside the model."""
    return sum(part.stat().st_size for part in (path, Path(f"{path}.data")) if part.is_file()) / 1e6


def _print_table(rows: Sequence[Row]) -> None:
    cells = [COLUMNS]
    for row in rows:
        found = row.judgement
        cells.append(
            (
                row.model,
                row.made_by,
                _number(found.sqnr_db, 2),
                _number(found.agreement, 2, 100),
                _number(found.accuracy, 2, 100),
                _number(found.median_ms, 3),
                _number(found.speedup, 2),
                _number(row.size_mb, 2),
                _number(row.quantize_seconds, 1),
                _number(row.quantize_peak_mb, 0),
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, line in enumerate(cells):
        left = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        error = rows[number - 1].judgement.error if number else None
        print("  ".join(left + right if error is None else [*left, error]))


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
