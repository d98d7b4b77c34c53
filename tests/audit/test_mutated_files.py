"""Valid files with bytes changed, cut out, doubled or swapped: qtool refuses them or reads them, and nothing else."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch

from qtool.formats.library_noise import quiet_libraries

# Runs in a process of its own, so that a crash is seen and memory can be capped; prints what went wrong.
READER = """
import json, sys
from pathlib import Path
from qtool.formats import registry
from qtool.formats.audit import audit
from qtool.formats.detect import detect
from qtool.formats.errors import FormatError
import qtool.formats.onnx.onnx_file, qtool.formats.torch.exported_program
import qtool.formats.torch.state_dicts, qtool.formats.torch.trusted_pickle, qtool.formats.torch.torch_calls
from qtool.workflows.diagnose.inspect import inspect_model

if sys.platform == "linux":
    import resource
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), held + (1 << 30)))

tally = {"refused": 0, "read": 0}
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, file=sys.stderr, flush=True)
    for action in (audit, lambda path: registry.load_source(detect(path).format).read(path), inspect_model):
        try:
            action(path)
            tally["read"] += 1
        except FormatError as error:
            assert error.problem and error.fix and "\\n" not in error.problem, error.problem
            tally["refused"] += 1
print(json.dumps(tally))
"""


def write_seeds(folder: Path) -> list[Path]:
    state = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2), "n": torch.tensor(3)}
    torch.save({"state_dict": state, "epoch": 3}, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "w.safetensors", metadata={"format": "pt"})
    layer = torch.nn.Linear(3, 2).eval()
    with quiet_libraries():
        torch.jit.save(torch.jit.trace(layer, torch.ones(1, 3)), folder / "script.pt")
        torch.export.save(torch.export.export(layer, (torch.ones(2, 3),)), folder / "program.pt2")
    weight = onnx.numpy_helper.from_array(state["weight"].T.numpy().copy(), "w")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(onnx.helper.make_model(graph, ir_version=8), folder / "graph.onnx")
    names = {"weight": "w.safetensors", "bias": "zip.pth"}
    (folder / "m.index.json").write_text(json.dumps({"weight_map": names}))
    return sorted(folder.iterdir())


def mutations(content: bytes, generator: random.Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(generator.choice((1, 1, 1, 3, 10))):
            place = generator.randrange(len(changed) or 1)
            match generator.randrange(6):
                case 0:
                    changed[place : place + 1] = bytes([generator.randrange(256)])
                case 1:
                    changed[place : place + 1] = (
                        bytes([changed[place] ^ 1 << generator.randrange(8)]) if changed else b""
                    )
                case 2:
                    del changed[place:]
                case 3:
                    del changed[place : place + generator.choice((1, 4, 30))]
                case 4:
                    length = generator.choice((1, 8, 50))
                    changed[place:place] = changed[place : place + length]
                case _:
                    # The largest and smallest numbers, in the widths that lengths have.
                    width = generator.choice((1, 2, 4, 8))
                    extreme = generator.choice((b"\xff" * width, b"\xff" * (width - 1) + b"\x7f", bytes(width)))
                    changed[place : place + width] = extreme
        yield bytes(changed)


def run(folder: Path, seconds: int) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, timeout=seconds, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    tally: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return tally


def spoil(tmp_path: Path, count: int, seed: int) -> Path:
    (tmp_path / "good").mkdir()
    folder = tmp_path / "bad"
    folder.mkdir()
    generator = random.Random(seed)
    for path in write_seeds(tmp_path / "good"):
        for number, content in enumerate(mutations(path.read_bytes(), generator, count)):
            (folder / f"{path.stem}-{number:04}{path.suffix}").write_bytes(content)
    return folder


@pytest.mark.slow
def test_changed_files_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    tally = run(spoil(tmp_path, 40, 1), 120)
    assert tally["refused"] > 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_many_changed_files_are_read_or_refused_and_nothing_else(tmp_path: Path, seed: int) -> None:
    assert run(spoil(tmp_path, 1000, seed), 1500)["refused"] > 5000


def test_files_that_are_cut_at_every_boundary_are_refused(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    folder = tmp_path / "bad"
    folder.mkdir()
    for path in write_seeds(tmp_path / "good"):
        content = path.read_bytes()
        # Behind the headers of zips, and where parts of JSON, pickles and protobuf end.
        marks = [match.start() for match in re.finditer(rb"PK|[}.\n]", content)]
        for length in marks[:: max(1, len(marks) // 30)]:
            (folder / f"{path.stem}-{length:06}{path.suffix}").write_bytes(content[:length])
    tally = run(folder, 120)
    assert tally["refused"] > 300
