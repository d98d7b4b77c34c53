"""The 64-bit ARM machines that qemu emulates, and the folder of what runs on them."""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

# What install_runtime.py makes.
FOLDER = Path(__file__).resolve().parents[2] / ".arm64"
INSTALLED = FOLDER / "installed.json"


@dataclass(frozen=True, slots=True)
class Machine:
    """One processor.

    Attributes:
        name: what its folder and tests are called.
        cpu: what qemu calls it.
        part: its number among those of Arm, in the main identification register.
        features: as Linux writes them in /proc/cpuinfo.
    """

    name: str
    cpu: str
    part: str
    features: str

    @property
    def root(self) -> Path:
        """The folder that qemu looks for files in before it takes the system's."""
        return FOLDER / self.name

    @property
    def cpuinfo(self) -> str:
        """What stands in /proc/cpuinfo, of two cores."""
        lines = (
            f"Features\t: {self.features}",
            "CPU implementer\t: 0x41",
            "CPU architecture: 8",
            "CPU variant\t: 0x0",
            f"CPU part\t: {self.part}",
            "CPU revision\t: 4",
        )
        return "".join("\n".join((f"processor\t: {core}", *lines)) + "\n\n" for core in range(2))


# Without SVE, which ends in wrong results in some versions of qemu.
NEW = Machine(
    "neoverse-n1",
    "max,sve=off",
    "0xd0c",
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp",
)
# Without dot products of 8-bit integers.
OLD = Machine("cortex-a53", "cortex-a53", "0xd03", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid")
MACHINES = (NEW, OLD)


def why_missing() -> str | None:
    """Tells why nothing can be emulated here; None where it can."""
    if platform.machine() in ("aarch64", "arm64"):
        return "this is a 64-bit ARM machine: all tests run on it"
    if shutil.which("qemu-aarch64") is None:
        return "there is no qemu-aarch64 to emulate 64-bit ARM (Debian: apt install qemu-user)"
    return None if INSTALLED.exists() else "there is no onnxruntime for 64-bit ARM: make test-arm"


def command(machine: Machine) -> list[str]:
    """Returns what runs Python on a machine."""
    python = json.loads(INSTALLED.read_text(encoding="utf-8"))["python"]
    return ["qemu-aarch64", "-cpu", machine.cpu, "-L", str(machine.root), str(FOLDER / python)]
