"""Integer instructions of the processor, as reported by the operating system."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_SYSCTL_SECONDS = 5.0
_X86 = ("x86_64", "amd64", "i386", "i686")
_ARM = ("arm64", "aarch64")


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerFeatures:
    """What a processor has for products of 8-bit integers; None where the operating system does not tell.

    Attributes:
        family: ``x86``, ``arm`` or the name of something else.
        avx2: vectors of 256 bits, the least that x86 kernels of integers want.
        avx512: vectors of 512 bits.
        vnni: x86's dot products of 8-bit integers with sums of 32 bits.
        amx: x86's products of tiles of 8-bit integers.
        dot_product: ARM's dot products of 8-bit integers.
        matrix_multiply: ARM's products of small matrices of 8-bit integers, i8mm.
        virtual: whether it runs under a hypervisor.
    """

    family: str
    avx2: bool | None = None
    avx512: bool | None = None
    vnni: bool | None = None
    amx: bool | None = None
    dot_product: bool | None = None
    matrix_multiply: bool | None = None
    virtual: bool | None = None


def integer_features() -> IntegerFeatures:
    """Asks the operating system; unknown features are None."""
    return features_of(platform.machine(), _flags())


def features_of(machine: str, flags: frozenset[str] | None) -> IntegerFeatures:
    """Reads flags as ``/proc/cpuinfo`` and ``sysctl hw machdep.cpu`` spell them, in lower case."""
    name = machine.lower()
    family = "x86" if name in _X86 else "arm" if name in _ARM else machine or "unknown"
    if flags is None:
        return IntegerFeatures(family=family)
    if family == "arm":
        return IntegerFeatures(
            family=family,
            dot_product=bool(flags & {"asimddp", "hw.optional.arm.feat_dotprod"}),
            matrix_multiply=bool(flags & {"i8mm", "hw.optional.arm.feat_i8mm"}),
        )
    if family == "x86":
        return IntegerFeatures(
            family=family,
            avx2=bool(flags & {"avx2", "hw.optional.avx2_0"}),
            avx512=bool(flags & {"avx512f", "hw.optional.avx512f"}),
            vnni=bool(flags & {"avx512_vnni", "avx_vnni", "avx512vnni", "hw.optional.avx512vnni"}),
            amx="amx_int8" in flags,
            virtual=True if "hypervisor" in flags else None,
        )
    return IntegerFeatures(family=family)


def flags_in_cpuinfo(text: str) -> frozenset[str] | None:
    """Returns the flags of the first processor in ``/proc/cpuinfo``; None where there are none."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.lower().split())
    return None


def flags_in_sysctl(text: str) -> frozenset[str] | None:
    """Returns what macOS's ``sysctl hw.optional machdep.cpu`` has set to 1 or lists; None where there is nothing."""
    flags: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        words = value.lower().split()
        if key.startswith("machdep.cpu.") and "features" in key:
            flags.update(words)
        elif words == ["1"]:
            flags.add(key.strip().lower())
    return frozenset(flags) or None


def _flags() -> frozenset[str] | None:
    try:
        if _CPUINFO.exists():
            return flags_in_cpuinfo(_CPUINFO.read_text(errors="replace"))
        if platform.system() != "Darwin":
            return None
        # Intel's keys are missing on Apple's processors, which makes sysctl fail and print the others all the same.
        result = subprocess.run(
            ["/usr/sbin/sysctl", "hw.optional", "machdep.cpu"],
            capture_output=True,
            text=True,
            timeout=_SYSCTL_SECONDS,
            check=False,
        )
        return flags_in_sysctl(result.stdout)
    except (OSError, subprocess.SubprocessError):
        return None
