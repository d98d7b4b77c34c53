"""What ``compare.py`` sets side by side: commands that quantize one model each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from processes import run

HERE = Path(__file__).parent
METHODS = ("minmax", "percentile", "entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """A command that quantizes.

    Attributes:
        program: what runs.
        before: its arguments before the model.
        data_option: what comes before the data.
        output_option: what comes before the output.
        options: its arguments at the end.
    """

    program: Sequence[str]
    before: Sequence[str] = ()
    data_option: Sequence[str] = ()
    output_option: Sequence[str] = ()
    options: Sequence[str] = ()

    def command(self, model: Path, data: Path, output: Path) -> list[str]:
        """Returns the whole command line."""
        parts = (self.program, self.before, (str(model),), self.data_option, (str(data),))
        return [text for part in (*parts, self.output_option, (str(output),), self.options) for text in part]


def qtool(options: str) -> Quantizer:
    """Returns ``qtool quantize`` with these options."""
    return Quantizer(
        program=(sys.executable, "-m", "qtool"),
        before=("quantize",),
        data_option=("--calib-data",),
        output_option=("-o",),
        options=("--quiet", "--force", *shlex.split(options)),
    )


def onnxruntime(method: str, *options: str) -> Quantizer:
    """Returns onnxruntime's own static quantizer."""
    program = (sys.executable, str(HERE / "onnxruntime_static.py"))
    return Quantizer(program=program, options=("--method", method, *options))


def qtool_variants() -> dict[str, Quantizer]:
    """Returns qtool with each effort that this version of it has, or as it is."""
    if "--effort" not in run((sys.executable, "-m", "qtool", "quantize", "--help")).output:
        return {"qtool": qtool("")}
    return {f"qtool {effort}": qtool(f"--effort {effort}") for effort in ("fast", "balanced", "best")}


def rivals() -> Mapping[str, Quantizer]:
    """Returns all that is installed."""
    found = {f"onnxruntime {method}": onnxruntime(method) for method in METHODS}
    found["onnxruntime minmax, reduce_range"] = onnxruntime("minmax", "--reduce-range")
    if find_spec("nncf") is not None:
        script = (sys.executable, str(HERE / "nncf_quantizer.py"))
        found["nncf"] = Quantizer(program=script)
        found["nncf transformer"] = Quantizer(program=script, options=("--transformer",))
    return found
