"""Which target a machine is, what a run without one gets, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from qtool.backends.onnxruntime_cpu import this_machine
from qtool.backends.onnxruntime_cpu.this_machine import target_of
from qtool.backends.this_machine import target_named
from qtool.processor import IntegerFeatures

_VNNI = IntegerFeatures(family="x86", avx2=True, vnni=True)
_AVX2 = IntegerFeatures(family="x86", avx2=True, vnni=False)
_OLD = IntegerFeatures(family="x86", avx2=False, vnni=False)


@pytest.mark.parametrize(
    ("features", "saturates", "target"),
    [
        (_VNNI, False, "x86-vnni"),
        (_AVX2, True, "x86-avx2"),
        # What onnxruntime does counts for more than what the system says, as under emulation.
        (_VNNI, True, "x86-avx2"),
        (IntegerFeatures(family="x86"), False, "x86-vnni"),
        (_OLD, False, "x86"),
        (IntegerFeatures(family="arm", dot_product=True), False, "arm64"),
        (IntegerFeatures(family="riscv64"), False, "x86"),
    ],
)
def test_the_target_follows_from_family_and_sums(features: IntegerFeatures, saturates: bool, target: str) -> None:
    assert target_of(features, saturates=saturates) == target


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine another one."""

    def be(features: IntegerFeatures, *, saturates: bool) -> None:
        monkeypatch.setattr(this_machine, "integer_features", lambda: features)
        monkeypatch.setattr(this_machine, "sums_saturate", lambda: saturates)

    return be


@pytest.mark.parametrize("name", [None, "auto"])
def test_without_a_name_it_is_the_machine_at_hand(on: Any, name: str | None) -> None:
    on(_AVX2, saturates=True)
    found = target_named(name)
    assert (found.scheme.target, found.chosen, found.is_here, found.is_measurable) == ("x86-avx2", True, True, True)
    assert found.description == "target x86-avx2: x86 with AVX2 or AVX-512, but no VNNI (this machine)"


def test_another_machine_is_said_to_be_one(on: Any) -> None:
    on(_AVX2, saturates=True)
    found = target_named("x86-vnni")
    assert not found.is_here
    assert found.description == "target x86-vnni: x86 with VNNI; times measured here are not from it"


def test_a_fleet_has_times_from_here_but_is_not_made_for_this_machine_alone(on: Any) -> None:
    on(_VNNI, saturates=False)
    found = target_named("x86")
    assert (found.is_here, found.is_measurable) == (True, False)
    on(IntegerFeatures(family="arm"), saturates=False)
    assert not target_named("x86").is_here


def test_a_run_says_first_what_it_is_for_and_repeats_it(run: Any, save: Any, tmp_path: Any, on: Any) -> None:
    import numpy as np

    weights = np.random.default_rng(0).normal(0, 1, (8, 8)).astype(np.float32)
    model = save("net.onnx", "g (float[n,8] x) => (float[n,8] y) { y = MatMul (x, w) }", w=weights)
    np.savez(tmp_path / "calib.npz", x=np.random.default_rng(1).normal(0, 1, (16, 8)).astype(np.float32))
    on(_AVX2, saturates=True)
    outcome = run("quantize", model, "--calib-data", "calib.npz", "--machine-profile", "shipped")
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("target x86-avx2: x86 with AVX2 or AVX-512, but no VNNI (this machine)\n")
    manifest = (tmp_path / "net.int8.manifest.json").read_text(encoding="utf-8")
    assert '"target": "x86-avx2"' in manifest
    # On another machine it is still for the first one.
    on(_VNNI, saturates=False)
    again = run("quantize", "--locked", tmp_path / "net.int8.manifest.json", "--force", "--json")
    assert again.code == 0, again.err
    assert again.json["target"] == "x86-avx2"
