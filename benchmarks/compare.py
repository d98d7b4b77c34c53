"""Quantizes models with qtool, and on request with other quantizers, and judges the results in one run.

Run: python benchmarks/compare.py FOLDER [MODEL ...] [--rival [METHOD]] [--all] [--variant NAME='OPTIONS'] [--json]

FOLDER has one folder a model with ``fp32.onnx``, ``calib.npz`` and ``eval.npz``: one array for each input of the graph,
one row a sample, and in ``eval.npz`` class indices as ``_label`` where there are some. ``real_models.py`` makes such a
folder. A variant is a set of options for ``qtool quantize``; the default is one without any, called ``qtool``, and with
``--all`` one for each ``--effort``. A quantizer that fails, and a model that does not load
or run, is a row like others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from judgement import FLOAT, Judgement
from processes import Finished, run
from quantizers import METHODS, Quantizer, onnxruntime, qtool, qtool_variants, rivals

JUDGE_SCRIPT = Path(__file__).with_name("judging.py")
PROBE_SCRIPT = Path(__file__).with_name("plain_inference.py")
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
    """What a quantizer wrote, how its run went, and why there is nothing to judge."""

    path: Path
    finished: Finished
    error: str | None


def main() -> int:
    """Makes, judges and prints; returns 1 where qtool's own model could not be made or run."""
    arguments = _arguments()
    rows: list[Row] = []
    for folder in _chosen(arguments.folder, arguments.models):
        print(f"{folder.name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            made = _made(folder, arguments.keep or Path(scratch), arguments.quantizers, arguments.limit_seconds)
            rows += _judged(folder, made, threads=arguments.threads, rounds=arguments.rounds)
    as_json = json.dumps([asdict(row) for row in rows], indent=2)
    as_markdown = _table(rows, markdown=True)
    if arguments.output is not None:
        arguments.output.with_suffix(".json").write_text(f"{as_json}\n", encoding="utf-8")
        arguments.output.with_suffix(".md").write_text(f"{as_markdown}\n", encoding="utf-8")
    if arguments.json:
        print(as_json)
    else:
        print(as_markdown if arguments.markdown else _table(rows, markdown=False))
    return int(any(row.judgement.error for row in rows if row.made_by in arguments.own))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judges quantized models side by side.")
    parser.add_argument("folder", type=Path, help="one folder a model, or the folder of one model")
    parser.add_argument("models", nargs="*", help="only these models of the folder")
    parser.add_argument("--all", action="store_true", help="every effort of qtool and every rival that is installed")
    parser.add_argument("--rival", action="append", nargs="?", const=METHODS[0], choices=METHODS, default=[])
    parser.add_argument("--variant", action="append", metavar="NAME=OPTIONS", default=[])
    parser.add_argument("--rounds", type=int, default=25, help="rounds of timing")
    parser.add_argument("--threads", type=int, default=2, help="threads inside an operator")
    parser.add_argument("--limit-seconds", type=float, default=1800, help="end a quantizer that takes longer")
    parser.add_argument("--keep", type=Path, help="an existing folder for the quantized models")
    parser.add_argument("--output", type=Path, help="also write the table to files of this name, .json and .md")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    own = {name: qtool(options) for name, _, options in (text.partition("=") for text in arguments.variant)}
    if not own:
        own = qtool_variants() if arguments.all else {"qtool": qtool("")}
    others = rivals() if arguments.all else {f"onnxruntime {method}": onnxruntime(method) for method in arguments.rival}
    arguments.own, arguments.quantizers = own, {**own, **others}
    return arguments


def _chosen(folder: Path, names: Sequence[str]) -> list[Path]:
    candidates = [folder] if (folder / FILES[0]).is_file() else sorted(folder.iterdir())
    whole = [path for path in candidates if all((path / name).is_file() for name in FILES)]
    found = [path for path in whole if not names or path.name in names]
    if not found:
        sys.exit(f"no model in {folder}: each needs a folder with {', '.join(FILES)}")
    return found


def _made(folder: Path, output: Path, quantizers: Mapping[str, Quantizer], limit_seconds: float) -> dict[str, Made]:
    """Returns, for everything that quantizes, what it wrote and how that went."""
    made = {}
    for name, quantizer in quantizers.items():
        path = output / f"{folder.name}.{name.replace(' ', '-')}.onnx"
        command = quantizer.command(folder / "fp32.onnx", folder / "calib.npz", path)
        finished = run(command, limit_seconds=limit_seconds)
        error = None
        if finished.code:
            late = finished.code < 0 and finished.seconds >= limit_seconds
            error = f"not made: {f'not ready after {limit_seconds:g} s' if late else finished.last_line}"
        else:
            # In a process of its own: a model may take the one that opens it down with it.
            probe = run((sys.executable, str(PROBE_SCRIPT), str(path), str(folder / "eval.npz"), "--limit", "1"))
            error = f"does not run: {probe.last_line}" if probe.code else None
        made[name] = Made(path, finished, error)
    return made


def _judged(folder: Path, made: Mapping[str, Made], *, threads: int, rounds: int) -> list[Row]:
    paths = {FLOAT: folder / "fp32.onnx"}
    paths |= {name: result.path for name, result in made.items() if result.error is None}
    options = ("--threads", str(threads), "--rounds", str(rounds))
    models = (f"{name}={path}" for name, path in paths.items())
    finished = run((sys.executable, str(JUDGE_SCRIPT), str(folder / "eval.npz"), *models, *options))
    if finished.code:
        sys.exit(f"{folder.name}: {finished.last_line}")
    judgements = {name: Judgement(**found) for name, found in json.loads(finished.output).items()}
    judgements |= {name: Judgement(error=result.error) for name, result in made.items() if result.error is not None}
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


def _table(rows: Sequence[Row], *, markdown: bool) -> str:
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
    errors = [None, *(row.judgement.error for row in rows)]
    if markdown:
        texts = [
            [*line[:2], *(line[2:] if error is None else (error.replace("|", "/"), *[""] * (len(line) - 3)))]
            for line, error in zip(cells, errors, strict=True)
        ]
        lines = [f"| {' | '.join(text)} |" for text in texts]
        return "\n".join([lines[0], f"|{'---|' * 2}{'---:|' * (len(COLUMNS) - 2)}", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line, error in zip(cells, errors, strict=True):
        left = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right if error is None else [*left, error]))
    return "\n".join(lines)


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:,.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
