"""The record beside a quantized model."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from qtool.errors import InputError
from qtool.fingerprint import data_sha256
from qtool.manifest import newest_manifest, read_manifest


def test_it_holds_hashes_options_versions_and_figures(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "--method", "percentile", "--exclude", "/c2/*").code == 0
    document = json.loads(Path("net.int8.manifest.json").read_text())
    for role, path in (("model", model), ("calib_data", data)):
        assert document["inputs"][role]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert document["inputs"][role]["path"] == path.name
    assert document["quantized_model"]["bytes"] == Path("net.int8.onnx").stat().st_size
    assert document["options"]["method"] == {"name": "percentile", "keep": 0.9999}
    assert document["options"]["exclude"] == ["/c2/*"]
    assert set(document["versions"]) >= {"qtool", "python", "onnxruntime", "numpy"}
    assert document["quantized"]["operators"]["Gemm"] == [1, 1]
    assert document["figures"]["sqnr_db:logits"] > 20


def test_its_paths_survive_a_move_of_the_folder(run: Any, model: Path, data: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    assert run("quantize", model, "--calib-data", data, "-o", results / "q.onnx").code == 0
    manifest = read_manifest(results / "q.manifest.json")
    assert manifest.float_model.path.resolve() == model.resolve()
    assert manifest.quantized_model.path.resolve() == (results / "q.onnx").resolve()
    assert Path(str(manifest.data)).resolve() == data.resolve()


def test_the_newest_one_wins(run: Any, model: Path, data: Path, tmp_path: Path) -> None:
    assert newest_manifest(tmp_path) is None
    for name in ("b.onnx", "a.onnx"):
        assert run("quantize", model, "--calib-data", data, "-o", name).code == 0
    os.utime("b.manifest.json", ns=(1, 1))
    newest = newest_manifest(tmp_path)
    assert newest is not None
    assert newest.quantized_model.path.name == "a.onnx"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": "qtool.manifest/1"}'])
def test_a_damaged_one_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.manifest.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a whole manifest"):
        read_manifest(path)


def test_another_version_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.manifest.json"
    path.write_text('{"schema": "qtool.manifest/9"}')
    with pytest.raises(InputError, match="this qtool reads"):
        read_manifest(path)


def test_a_folder_of_data_has_a_hash_of_its_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.npy").write_bytes(b"1")
    first = data_sha256(str(folder))
    (folder / "a.npy").rename(folder / "b.npy")
    second = data_sha256(str(folder))
    (folder / "b.npy").write_bytes(b"2")
    assert len({first, second, data_sha256(str(folder))}) == 3
    assert data_sha256("module:function") is None
