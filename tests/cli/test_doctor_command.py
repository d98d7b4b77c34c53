"""``qtool doctor``: what this machine is, and what is slow about it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from qtool.backends.machine_profile import LayerSpeed
from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.backends.onnxruntime_cpu.shipped_profiles import shipped_profile
from qtool.backends.targets import PRESETS
from qtool.cli.app import app
from qtool.processor import IntegerFeatures, features_of, flags_in_cpuinfo, flags_in_sysctl
from qtool.workflows.diagnose.doctor import about_cores, about_processor, about_speed, usable_cores

_INTEL = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_tile amx_int8 hypervisor\n"
_OLD = "processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2\n"
_GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"
_APPLE = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\nhw.optional.neon: 1\n"
_MAC_INTEL = "machdep.cpu.leaf7_features: RDWRFSGS AVX2 AVX512F AVX512VNNI\nhw.optional.avx2_0: 1\n"


@pytest.mark.parametrize(
    ("machine", "flags", "family", "vnni", "amx", "dot_product"),
    [
        ("x86_64", flags_in_cpuinfo(_INTEL), "x86", True, True, None),
        ("AMD64", flags_in_cpuinfo(_OLD), "x86", False, False, None),
        ("aarch64", flags_in_cpuinfo(_GRAVITON), "arm", None, None, True),
        ("arm64", flags_in_sysctl(_APPLE), "arm", None, None, True),
        ("x86_64", flags_in_sysctl(_MAC_INTEL), "x86", True, False, None),
        ("AMD64", None, "x86", None, None, None),
        ("riscv64", flags_in_cpuinfo("isa : rv64imafdc\n"), "riscv64", None, None, None),
    ],
)
def test_features_are_read_off_what_each_system_says(
    machine: str, flags: Any, family: str, vnni: Any, amx: Any, dot_product: Any
) -> None:
    features = features_of(machine, flags)
    assert features.family == family
    assert (features.vnni, features.amx, features.dot_product) == (vnni, amx, dot_product)


def test_systems_that_say_nothing_have_no_flags() -> None:
    assert flags_in_cpuinfo("") is None
    assert flags_in_sysctl("sysctl: unknown oid 'machdep.cpu'\n") is None


@pytest.mark.parametrize(
    ("features", "saturates", "problem", "fix"),
    [
        (IntegerFeatures(family="x86", avx2=True, vnni=False), True, "in 16 bits", "--target auto"),
        # Where the system says something else, as under emulation, what onnxruntime does counts.
        (IntegerFeatures(family="x86", avx2=True, vnni=True), True, "in 16 bits", "--target auto"),
        (IntegerFeatures(family="x86", avx2=False), False, "no AVX2", "newer"),
        (IntegerFeatures(family="arm", dot_product=False), False, "no dot products", "newer"),
        (IntegerFeatures(family="riscv64"), False, "no target for riscv64", "qtool report"),
        (IntegerFeatures(family="x86", avx2=True, vnni=True, virtual=True), False, "virtual machine", "speedup"),
    ],
)
def test_what_a_processor_lacks_comes_with_a_way_out(
    features: IntegerFeatures, saturates: bool, problem: str, fix: str
) -> None:
    (remark,) = about_processor(features, saturates=saturates)
    assert problem in remark.problem
    assert fix in remark.fix


def test_a_good_processor_has_no_remarks() -> None:
    assert not list(about_processor(IntegerFeatures(family="x86", avx2=True, vnni=True), saturates=False))


def test_integers_that_gain_little_are_spoken_of() -> None:
    profile = shipped_profile("x86-vnni")
    assert not list(about_speed(profile))
    slow = replace(profile, layers=dict.fromkeys(profile.layers, LayerSpeed(floats=1.0, signed=0.9, unsigned=1.0)))
    (remark,) = about_speed(slow)
    assert "1.11x as fast as in float" in remark.problem
    assert "--smallest" in remark.fix


def test_limits_of_containers_count() -> None:
    everything = usable_cores(64, "max 100000")
    assert everything == usable_cores(64, "nonsense")
    assert usable_cores(64, "50000 100000") == 0.5
    assert usable_cores(64, "999999900000 100000") == everything
    (remark,) = about_cores(8, 1.5, 0.0)
    assert "only 1.5 of 8 cores" in remark.problem
    assert remark.fix == "--threads 1"
    (remark,) = about_cores(2, 2.0, 3.5)
    assert "a load of 3.5 on 2 cores" in remark.problem


def test_it_shows_versions_features_and_speed() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"qtool", "python", "onnxruntime", "numpy", "torch"} <= found["versions"].keys()
    assert "CPUExecutionProvider" in found["providers"]
    assert found["target"] in PRESETS
    assert found["saturates"] is sums_saturate()
    assert 0 < found["usable_cores"] <= found["machine"]["cores"]
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0
    assert found["versions"]["onnxruntime"] in shown.stdout
    assert "product with a matrix" in shown.stdout
    assert ("16 bits, saturating" if sums_saturate() else "32 bits") in shown.stdout
