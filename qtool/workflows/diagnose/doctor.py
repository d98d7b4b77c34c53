"""Checks the machine: versions, processor, threads, and causes of slow models or noisy figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qtool.backends.machine_profile import LayerKind, LayerSpeed, MachineProfile
from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.backends.onnxruntime_cpu.measure_profile import measure_profile
from qtool.backends.onnxruntime_cpu.this_machine import target_of
from qtool.processor import IntegerFeatures, integer_features
from qtool.progress import Progress
from qtool.reporting.model import Machine
from qtool.reporting.surroundings import machine, versions
from qtool.runtime.available_memory import available_bytes
from qtool.runtime.session import providers

_PACKAGES = ("onnx", "onnxscript", "torch", "typer", "rich")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_LITTLE_MEMORY_BYTES = 2_000_000_000
# Below this speedup of a product, conversions around layers take the time that integers save.
_LITTLE_SPEEDUP = 1.3
_BUSY = 0.5


@dataclass(frozen=True, slots=True)
class Remark:
    """A remark about the machine.

    Attributes:
        problem: the problem.
        fix: how to fix it.
    """

    problem: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The findings.

    Attributes:
        versions: of qtool, Python and packages.
        machine: system, processor and logical cores.
        features: what the processor has for integers, as far as the system tells.
        saturates: whether sums of u8 by s8 products saturate at 16 bits here, found by running some.
        target: the preset for this machine.
        usable_cores: how many cores this process may use at a time; fewer than there are in containers.
        load: programs that wanted to run in the last minute, on average; None where the system does not tell.
        thread_variables: those that are set and change how many threads libraries take.
        free_memory_bytes: as ``available_bytes`` tells it.
        providers: execution providers of the installed onnxruntime.
        profile: what kernels cost here, with a thread a core.
        remarks: what is slow or noisy about all that.
    """

    versions: Mapping[str, str]
    machine: Machine
    features: IntegerFeatures
    saturates: bool
    target: str
    usable_cores: float
    load: float | None
    thread_variables: Mapping[str, str]
    free_memory_bytes: int | None
    providers: tuple[str, ...]
    profile: MachineProfile
    remarks: tuple[Remark, ...]


def diagnose(progress: Progress, *, threads: int = 0) -> Diagnosis:
    """Asks the system, and times kernels in float and in integers.

    Args:
        progress: receives the steps.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    here, features, saturates = machine(), integer_features(), sums_saturate()
    usable, load, memory = usable_cores(here.cores), _load(), available_bytes()
    variables = {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}
    profile = measure_profile(progress, threads=threads)
    remarks = (
        *about_processor(features, saturates=saturates),
        *about_speed(profile),
        *about_cores(here.cores, usable, load),
        *_about_surroundings(variables, memory),
    )
    return Diagnosis(
        versions={**versions(), **_more_versions()},
        machine=here,
        features=features,
        saturates=saturates,
        target=target_of(features, saturates=saturates),
        usable_cores=usable,
        load=load,
        thread_variables=variables,
        free_memory_bytes=memory,
        providers=providers(),
        profile=profile,
        remarks=remarks,
    )


def about_processor(features: IntegerFeatures, *, saturates: bool) -> Iterator[Remark]:
    """Yields remarks on missing integer instructions."""
    if saturates:
        yield Remark(
            "the processor adds products of integers in 16 bits: models that are not made for that overflow",
            "--target auto, x86-avx2 or x86; `qtool verify MODEL` tells whether a model fits",
        )
    if features.family == "x86" and features.avx2 is False:
        yield Remark("the processor has no AVX2: integers are hardly faster than floats", "run on a newer one")
    if features.family == "arm" and features.dot_product is False:
        yield Remark(
            "the processor has no dot products of integers: they are hardly faster than floats", "run on a newer one"
        )
    if features.family not in ("x86", "arm"):
        yield Remark(f"qtool has no target for {features.family}", "measure with `qtool report` what integers gain")
    if features.virtual:
        yield Remark(
            "this is a virtual machine, whose host makes times vary", "gate on ratios such as speedup, not on times"
        )


def about_speed(profile: MachineProfile) -> Iterator[Remark]:
    """Yields a remark where integers save little time."""
    best = max(speedup(profile.layers[kind]) for kind in (LayerKind.CONV, LayerKind.MATRIX))
    if best < _LITTLE_SPEEDUP:
        yield Remark(
            f"integers gain little here: the largest layers are {best:.2f}x as fast as in float",
            "`qtool quantize` keeps layers float that gain nothing; --smallest quantizes all of them",
        )


def speedup(speed: LayerSpeed) -> float:
    """Returns how many times faster a layer is on integers, as quantized models usually have it."""
    return speed.floats / speed.signed


def about_cores(cores: int, usable: float, load: float | None) -> Iterator[Remark]:
    """Yields remarks on limits to the use of all cores."""
    if usable < cores:
        yield Remark(
            f"only {usable:g} of {cores} cores may be used; onnxruntime takes one thread a core that it sees",
            f"--threads {max(int(usable), 1)}",
        )
    if load is not None and load > _BUSY * cores:
        yield Remark(
            f"other programs are running: a load of {load:.1f} on {cores} cores",
            "stop them before measuring; `qtool report` times models in turns, so that ratios stay right",
        )


def _about_surroundings(variables: Mapping[str, str], memory: int | None) -> Iterator[Remark]:
    governor = _text(_GOVERNOR)
    if governor in ("powersave", "conservative"):
        yield Remark(
            f"the frequency governor is {governor}: times vary and are long", "cpupower frequency-set -g performance"
        )
    if variables:
        given = ", ".join(f"{name}={value}" for name, value in variables.items())
        yield Remark(f"{given} limits threads of torch and numpy, not those of onnxruntime", "--threads N for those")
    if memory is not None and memory < _LITTLE_MEMORY_BYTES:
        yield Remark(f"{memory / 1e9:.1f} GB of memory are free", "close other programs, or use --batch-size 1")


def usable_cores(cores: int, limit: str | None = None) -> float:
    """Returns how many cores this process may use: those it is bound to, or fewer by a container's limit.

    Args:
        cores: how many there are.
        limit: microseconds of every period, or ``max``, and the period, as cgroups write it; None for this machine's.
    """
    # Python asks only Linux which cores a process is bound to.
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota, _, period = (limit or _text(_CGROUP_LIMIT) or "max 1").partition(" ")
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return float(bound)
    return min(float(bound), int(quota) / int(period))


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _more_versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
