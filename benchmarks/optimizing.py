"""Sets ``qtool optimize`` beside onnxslim and onnxsim: nodes, seconds and how far outputs move.

Run: python benchmarks/optimizing.py FOLDER_OR_MODEL... [--rivals-python PYTHON] [--large NODES]

Folders hold a model each as ``NAME/fp32.onnx``, with samples in ``eval.npz`` where there are some. The rivals run where
they are installed, ``pip install onnxslim onnxsim``, in an environment of their own if ``--rivals-python`` names its
interpreter. ``--large`` adds a graph of that many nodes, made for this. Prints a Markdown table. Nodes in subgraphs
count, constants that are written as nodes do not; seconds are those of whole processes, start-up and qtool's own
comparison included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from processes import run

from qtool.errors import RuntimeRefusedError
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.passes.optimization.pipeline import node_counts
from qtool.workflows.convert.half_precision import input_specs
from qtool.workflows.convert.numerical_check import Witness
from qtool.workflows.quantize.data_request import DataRequest

_RIVALS = {
    "onnxslim": "import sys, onnx, onnxslim; onnx.save(onnxslim.slim(sys.argv[1]), sys.argv[2])",
    "onnxsim": "import sys, onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load(sys.argv[1]))[0], sys.argv[2])",
}
_CHAINS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one tool made of a model; None for what could not be measured.

    Attributes:
        nodes: how many are left.
        seconds: the time of the process.
        difference: the largest difference of an output over its largest value.
    """

    nodes: int | None = None
    seconds: float | None = None
    difference: float | None = None


def main() -> None:
    """Runs every tool on every model and prints the table."""
    parser = argparse.ArgumentParser(description="Sets qtool optimize beside onnxslim and onnxsim.")
    parser.add_argument("models", nargs="*", type=Path, help="models, or folders of NAME/fp32.onnx")
    parser.add_argument("--rivals-python", default=sys.executable, help="interpreter that has onnxslim and onnxsim")
    parser.add_argument("--large", type=int, metavar="NODES", help="add a graph of so many nodes")
    arguments = parser.parse_args()
    titles = [f"{tool} {what}" for tool in ("qtool", *_RIVALS) for what in ("nodes", "s", "difference")]
    print(f"| model | nodes | {' | '.join(titles)} |")
    print(f"|---|{'---:|' * (1 + len(titles))}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for path in _paths(arguments.models, arguments.large, Path(scratch)):
            print(_row(path, arguments.rivals_python, Path(scratch)), flush=True)


def large_graph(nodes: int) -> onnx.ModelProto:
    """Returns chains of layers with much to fold, merge and remove, about ``nodes`` nodes in all."""
    rng = np.random.default_rng(3)
    made, nodes_made, outputs = [], [], []
    for chain in range(_CHAINS):
        value = "x"
        for link in range(max(1, nodes // (10 * _CHAINS))):
            at = f"{chain}_{link}"
            constants = {
                "weight": rng.normal(0, 0.3, (4, 4, 1, 1)),
                "scale": rng.normal(1, 0.1, 4),
                "shift": rng.normal(0, 0.1, 4),
                "mean": rng.normal(0, 0.1, 4),
                "variance": rng.uniform(0.5, 1.5, 4),
                "half": np.asarray(0.5),
            }
            own = {name: f"{name}_{at}" for name in constants}
            made += [numpy_helper.from_array(array.astype(np.float32), own[name]) for name, array in constants.items()]
            steps = (
                ("Conv", (value, own["weight"]), {}),
                ("BatchNormalization", ("Conv", own["scale"], own["shift"], own["mean"], own["variance"]), {}),
                ("Relu", ("BatchNormalization",), {}),
                ("Identity", ("Relu",), {}),
                ("Transpose", ("Identity",), {"perm": [0, 2, 3, 1]}),
                ("Transpose2", ("Transpose",), {"perm": [0, 3, 1, 2]}),
                ("Shape", (value,), {}),
                ("Reshape", ("Transpose2", "Shape"), {}),
                ("Mul", ("Reshape", own["half"]), {}),
                ("Tanh", ("Mul",), {}),
            )
            names = {name: f"{name}_{at}" for name, _, _ in steps}
            for name, given, attributes in steps:
                read = [names.get(part, part) for part in given]
                nodes_made.append(helper.make_node(name.rstrip("2"), read, [names[name]], names[name], **attributes))
            value = names["Tanh"]
        outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", 4, 8, 8]))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])
    graph = helper.make_graph(nodes_made, "large", [source], outputs, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _paths(models: list[Path], large: int | None, scratch: Path) -> Iterator[Path]:
    for model in models:
        yield from sorted(model.glob("*/fp32.onnx")) if model.is_dir() else [model]
    if large is not None:
        (scratch / "large").mkdir()
        path = scratch / "large" / "fp32.onnx"
        onnx.save(large_graph(large), path)
        yield path


def _row(path: Path, rivals_python: str, scratch: Path) -> str:
    model = OnnxFile().read(path)
    before = node_counts(model).total()
    samples = path.with_name("eval.npz")
    data = DataRequest(source=str(samples)) if samples.exists() else None
    witness = Witness(path, input_specs(model), data, nodes=before)
    result = scratch / "result.onnx"
    given = () if data is None else ("--data", data.source)
    commands = {"qtool": (sys.executable, "-m", "qtool", "optimize", str(path), "-o", str(result), "--force", *given)}
    commands |= {tool: (rivals_python, "-c", script, str(path), str(result)) for tool, script in _RIVALS.items()}
    cells = [path.parent.name if path.stem == "fp32" else path.stem, str(before)]
    for command in commands.values():
        result.unlink(missing_ok=True)
        outcome = _outcome(command, result, witness)
        cells += [
            "-" if outcome.nodes is None else str(outcome.nodes),
            "-" if outcome.seconds is None else f"{outcome.seconds:.1f}",
            "-" if outcome.difference is None else f"{outcome.difference:.1e}",
        ]
    return f"| {' | '.join(cells)} |"


def _outcome(command: tuple[str, ...], result: Path, witness: Witness) -> Outcome:
    finished = run(command)
    if finished.code or not result.exists():
        return Outcome()
    # Read as it is: what a rival wrote need not be sound.
    nodes = node_counts(ir.load(result)).total()
    try:
        difference = witness.compare(result).worst.relative
    except RuntimeRefusedError:  # a result that does not run is an outcome, too
        return Outcome(nodes=nodes, seconds=finished.seconds)
    return Outcome(nodes=nodes, seconds=finished.seconds, difference=difference)


if __name__ == "__main__":
    main()
