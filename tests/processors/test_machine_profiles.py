"""What kernels cost: measured here, shipped for other machines, kept in files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from qtool.backends.machine_profile import LayerKind, profile_from_json, read_profile
from qtool.backends.onnxruntime_cpu.measure_profile import measure_profile
from qtool.backends.onnxruntime_cpu.shipped_profiles import has_profile, shipped_profile
from qtool.backends.targets import PRESETS
from qtool.errors import InputError
from qtool.progress import Silent


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A profile as values for JSON."""
    return shipped_profile("x86-avx2").as_json()


def test_every_kernel_takes_time_here() -> None:
    found = measure_profile(Silent(), threads=1)
    assert (found.origin, found.threads) == ("measured", 1)
    assert set(found.layers) == set(LayerKind)
    for speed in (*found.layers.values(), *found.operators.values()):
        assert min(asdict(speed).values()) > 0.0
    assert min(found.quantize, found.dequantize, found.node) > 0.0


def test_only_what_is_asked_for_is_timed() -> None:
    found = measure_profile(Silent(), kinds=[LayerKind.VECTOR], operators=["Mul", "Softmax"], threads=1)
    # A pointwise Conv shows what an element costs between float and integers.
    assert set(found.layers) == {LayerKind.VECTOR, LayerKind.POINTWISE}
    assert set(found.operators) == {"Mul"}
    assert min(found.quantize, found.dequantize, found.transpose, found.reorder, found.node) > 0.0
    document = json.loads(json.dumps(found.as_json()))
    assert profile_from_json(document, "the manifest", kinds=()) == found
    with pytest.raises(InputError, match="complete"):
        profile_from_json(document, "mine.json")


@pytest.mark.parametrize("target", PRESETS)
def test_every_target_has_a_profile_or_what_stands_in_for_it(target: str) -> None:
    profile = shipped_profile(target)
    assert profile.origin in PRESETS
    assert has_profile(target) == target.startswith("x86")


def test_integers_save_less_without_vnni() -> None:
    def speedup(target: str, kind: LayerKind) -> float:
        speed = shipped_profile(target).layers[kind]
        return speed.floats / speed.signed

    for kind in (LayerKind.CONV, LayerKind.POINTWISE, LayerKind.MATRIX):
        assert speedup("x86-avx2", kind) < speedup("x86-vnni", kind)
    # A file for all of them has to be fast where they save least.
    assert shipped_profile("x86") == shipped_profile("x86-avx2")


def test_a_profile_survives_the_way_through_json(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert profile_from_json(json.loads(text), "text").as_json() == document


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "qtool.profile/0"},
        {"layers": {}},
        {"quantize": "fast"},
        {"operators": {"Add": {"floats": 0.0, "integers": 1.0}}},
        {"node": None},
    ],
)
def test_a_damaged_profile_is_refused(document: dict[str, Any], damage: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        profile_from_json({**document, **damage}, "mine.json")
    assert "mine.json" in str(refused.value)
    assert "qtool doctor --machine-profile" in refused.value.fix


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(InputError, match=r"profile\.json is not a machine profile"):
        read_profile(path)
    path.write_text("not json")
    with pytest.raises(InputError, match=r"profile\.json is not a machine profile"):
        read_profile(path)


def test_doctor_writes_a_profile_that_quantize_reads(run: Any, save: Any, tmp_path: Path) -> None:
    import numpy as np

    outcome = run("doctor", "--machine-profile", "here.json", "--threads", "1", "--json")
    assert outcome.code == 0, outcome.err
    written = json.loads((tmp_path / "here.json").read_text("utf-8"))
    assert outcome.json["profile"] == written
    assert run("doctor", "--machine-profile", "here.json").code == 2  # it exists
    weights = np.random.default_rng(0).normal(0, 1, (8, 8)).astype(np.float32)
    model = save("net.onnx", "g (float[n,8] x) => (float[n,8] y) { y = MatMul (x, w) }", w=weights)
    np.savez(tmp_path / "calib.npz", x=np.random.default_rng(1).normal(0, 1, (16, 8)).astype(np.float32))
    options = ("--calib-data", "calib.npz", "--machine-profile", "here.json")
    assert run("quantize", model, *options).code == 0
    manifest = json.loads((tmp_path / "net.int8.manifest.json").read_text("utf-8"))
    assert manifest["lock"]["timing"]["profile"] == written
