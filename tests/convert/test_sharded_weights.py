import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from qtool.formats import mapped_tensors
from qtool.formats.base import Weights
from qtool.formats.registry import load_source
from qtool.formats.tied import ties
from qtool.formats.weights.sharded_weights import ShardedWeights

SHAPE = ("--input-shape", "image=batch,3,16,16")


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The net's weights in two files, one of them a checkpoint."""
    state = torch.load("weights.pth", weights_only=True)
    names = sorted(state)
    first, second = names[:3], names[3:]
    safetensors.torch.save_file({name: state[name] for name in first}, "net-1.safetensors", metadata={"format": "pt"})
    torch.save({name: state[name] for name in second}, "net-2.bin")
    places = dict.fromkeys(first, "net-1.safetensors") | dict.fromkeys(second, "net-2.bin")
    Path("net.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder / "net.safetensors.index.json"


def test_weights_in_several_files_convert_as_one(run: Any, sharded: Path) -> None:
    result = run(sharded.name, "--model", "smallnet:Net", *SHAPE)
    assert result.exit_code == 0, result.output
    assert "tensors in 2 files" in result.stdout
    assert Path("net.onnx").is_file()
    assert run(sharded.name, "--to", "pth").exit_code == 0
    state = torch.load("net.pth", weights_only=True)
    expected = torch.load("weights.pth", weights_only=True)
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_missing_file_or_tensor_is_named(run: Any, sharded: Path) -> None:
    index = json.loads(sharded.read_text())
    index["weight_map"]["extra"] = "net-2.bin"
    Path("more.index.json").write_text(json.dumps(index))
    result = run("more.index.json", "--to", "pth")
    assert result.exit_code == 2
    assert "net-2.bin has no tensor 'extra'" in result.stderr
    Path("net-2.bin").unlink()
    result = run(sharded.name, "--to", "pth")
    assert result.exit_code == 2
    assert "net-2.bin, which" in result.stderr


def test_a_program_among_the_files_is_named(run: Any, sharded: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.ones(1, 2)), "net-2.bin")
    result = run(sharded.name, "--to", "pth")
    assert result.exit_code == 2
    assert "net-2.bin, which net.safetensors.index.json names, is TorchScript instead of weights" in result.stderr


def write(run: Any, state: dict[str, torch.Tensor], *options: str) -> Any:
    torch.save(state, "large.pth")
    result = run("large.pth", "--to", "safetensors", "--force", *options)
    assert result.exit_code == 0, result.output
    return result


def test_large_weights_are_written_as_several_files_that_others_read(run: Any, folder: Path) -> None:
    tied = torch.randn(100_000)
    state = {f"layer{number}": torch.randn(100_000) for number in range(4)}
    state |= {"first": tied, "big": torch.randn(600_000), "last": tied}
    write(run, state, "--max-shard-mb", "1")
    index = json.loads(Path("large.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.numel() * 4 for value in state.values())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"large-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    for name, file in index["weight_map"].items():
        with safetensors.safe_open(file, framework="pt") as stored:
            assert torch.equal(stored.get_tensor(name), state[name])
    assert all(Path(file).stat().st_size < 1_001_000 for name, file in index["weight_map"].items() if name != "big")
    again = ShardedWeights().read(Path("large.safetensors.index.json")).tensors
    assert ties(again) == {"last": "first"}


def test_the_limit_says_nothing_to_a_single_file(run: Any, folder: Path) -> None:
    result = run("weights.pth", "--to", "pth", "-o", "o.pth", "--max-shard-mb", "1")
    assert result.exit_code == 2
    assert "--max-shard-mb has no effect" in result.stderr


@pytest.mark.parametrize("name", ["large.pth", "large.safetensors", "large.safetensors.index.json"])
def test_files_that_are_mapped_anew_give_the_same(
    run: Any, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = torch.randn(500)
    state = {"first": tied, **{f"layer{number}": torch.randn(300) for number in range(20)}, "last": tied}
    write(run, state)
    if name.endswith("json"):
        write(run, state, "--max-shard-mb", "1")
    expected = Path("large.safetensors").read_bytes()
    monkeypatch.setattr(mapped_tensors, "_LARGEST_MAPPED_BYTES", 4000)
    kind = {"pth": "torch", "safetensors": "safetensors", "json": "sharded"}[name.rpartition(".")[2]]
    source = load_source(kind)
    assert source.holds == "weights"
    weights = source.read(Path(name))
    assert isinstance(weights.tensors, mapped_tensors.MappedTensors)
    assert dict(weights.tensors.tied) == {"last": "first"}
    assert all(torch.equal(weights.tensors[name], value) for name, value in state.items())
    target = load_source("safetensors")
    target.write(Weights(tensors=weights.tensors, metadata={}, source=""), Path("again.safetensors"))
    assert Path("again.safetensors").read_bytes() == expected


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_cache_of_hugging_face_is_read_through_its_links(run: Any, sharded: Path, folder: Path) -> None:
    # models--x/snapshots/REVISION/NAME links to ../../blobs/HASH.
    blobs, snapshot = folder / "cache" / "blobs", folder / "cache" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("net-1.safetensors", "net-2.bin", sharded.name)):
        os.replace(folder / name, blobs / f"{number:064}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064}")
    result = run(str(snapshot / sharded.name), "--to", "safetensors", "-o", "out.safetensors")
    assert result.exit_code == 0, result.output
    # A link to anywhere else is none of the cache's.
    (folder / "elsewhere.bin").write_bytes((blobs / f"{1:064}").read_bytes())
    (snapshot / "net-2.bin").unlink()
    (snapshot / "net-2.bin").symlink_to(folder / "elsewhere.bin")
    result = run(str(snapshot / sharded.name), "--to", "safetensors", "-o", "out2.safetensors")
    assert result.exit_code == 2
    assert "points outside of its folder" in result.stderr


CONVERT = """
import resource, sys
from typer.testing import CliRunner
from qtool.cli.app import app

result = CliRunner().invoke(app, sys.argv[1:])
assert result.exit_code == 0, result.output
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""

# Pages of files, which the system drops when it needs them, are no private memory.
CONVERT_WATCHED = """
import pathlib, re, sys, threading
from typer.testing import CliRunner
from qtool.cli.app import app

peak, done = 0, threading.Event()


def watch():
    global peak
    while not done.wait(0.01):
        status = pathlib.Path("/proc/self/status").read_text()
        peak = max(peak, 1024 * int(re.search(r"RssAnon:\\s+([0-9]+) kB", status)[1]))


watcher = threading.Thread(target=watch)
watcher.start()
result = CliRunner().invoke(app, sys.argv[1:])
done.set()
watcher.join()
assert peak
assert result.exit_code == 0, result.output
print(peak)
"""
LARGE_TENSOR_BYTES = 8192 * 8192 * 4


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Three gigabytes of zeros, in twelve tensors, that take no room on the disk."""
    header = json.dumps(
        {
            f"layer{number}.weight": {
                "dtype": "F32",
                "shape": [8192, 8192],
                "data_offsets": [number * LARGE_TENSOR_BYTES, (number + 1) * LARGE_TENSOR_BYTES],
            }
            for number in range(12)
        }
    ).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 12 * LARGE_TENSOR_BYTES)
    return path


def peak_of(folder: Path, code: str, *arguments: str) -> int:
    """Returns the peak that ``code`` tells of ``qtool`` with these arguments, in bytes."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from the kernel")
def test_three_gigabytes_take_the_memory_of_a_few_tensors(tmp_path: Path, large: Path) -> None:
    for arguments in (
        ("inspect", "large.safetensors"),
        ("convert", "large.safetensors", "--to", "safetensors", "--max-shard-mb", "600", "-o", "parts.safetensors"),
        ("convert", "parts.safetensors.index.json", "--to", "safetensors", "-o", "again.safetensors"),
    ):
        assert peak_of(tmp_path, CONVERT, *arguments) < LARGE_TENSOR_BYTES + (1 << 30)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from the kernel")
def test_torch_files_of_three_gigabytes_are_written_from_the_pages_of_the_source(tmp_path: Path, large: Path) -> None:
    for arguments in (
        ("convert", "large.safetensors", "--to", "pth", "-o", "large.pth"),
        ("convert", "large.pth", "--to", "safetensors", "--max-shard-mb", "600", "-o", "parts.safetensors"),
        ("convert", "parts.safetensors.index.json", "--to", "pth", "-o", "again.pth"),
    ):
        assert peak_of(tmp_path, CONVERT_WATCHED, *arguments) < LARGE_TENSOR_BYTES + (1 << 30)
        # The next step needs only what this one wrote: nine gigabytes at once are more than some disks have left.
        (tmp_path / arguments[1]).unlink()


# More than the limit on private memory, which files count for that are mapped so that tensors can be written to.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
from qtool.cli.app import app
app(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_file_that_the_system_does_not_map_is_not_called_damaged(tmp_path: Path, large: Path) -> None:
    command = [sys.executable, "-c", LIMITED, "convert", large.name, "--to", "pth", "-o", "large.pth"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    said = " ".join(result.stderr.split())
    assert "does not map large.safetensors, which has 3.2 GB" in said
    assert "sysctl vm.overcommit_memory=1" in said
    assert not (tmp_path / "large.pth").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_checkpoint_that_the_system_does_not_map_is_not_called_damaged(tmp_path: Path) -> None:
    torch.save({"weight": torch.empty(1)}, tmp_path / "small.pth")
    code = LIMITED.replace(
        "from qtool.cli.app",
        "import torch\n"
        "def refuse(*_, **__): raise RuntimeError('unable to mmap 9 bytes from file <x>: no memory')\n"
        "torch.load = refuse\n"
        "from qtool.cli.app",
    )
    command = [sys.executable, "-c", code, "convert", "small.pth", "--to", "safetensors"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "the system does not map small.pth" in " ".join(result.stderr.split())


def test_tensors_that_the_index_does_not_name_are_converted_too(run: Any, sharded: Path) -> None:
    expected = torch.load("weights.pth", weights_only=True)
    index = json.loads(sharded.read_text())
    left_out = sorted(index["weight_map"])[1::2]
    for name in left_out:
        del index["weight_map"][name]
    sharded.write_text(json.dumps(index))
    result = run(sharded.name, "--to", "pth")
    assert result.exit_code == 0, result.output
    assert f"{len(left_out)} of them not in the index" in " ".join(result.stdout.split())
    state = torch.load("net.pth", weights_only=True)
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_tensor_in_two_files_is_the_one_that_the_index_names(run: Any, sharded: Path) -> None:
    index = json.loads(sharded.read_text())
    name = next(name for name, file in index["weight_map"].items() if file == "net-1.safetensors")
    second = torch.load("net-2.bin", weights_only=True)
    torch.save({**second, name: torch.zeros(1)}, "net-2.bin")
    assert run(sharded.name, "--to", "pth").exit_code == 0
    expected = torch.load("weights.pth", weights_only=True)
    assert torch.equal(torch.load("net.pth", weights_only=True)[name], expected[name])
    del index["weight_map"][name]
    sharded.write_text(json.dumps(index))
    result = run(sharded.name, "--to", "pth", "--force")
    assert result.exit_code == 2
    assert f"does not say which of its files '{name}' is from" in result.stderr
