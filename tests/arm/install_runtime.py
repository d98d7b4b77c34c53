"""Installs onnxruntime's aarch64 package and an arm64 Python in .arm64, for `make test-arm`; the system stays as it is.

Run: python -m tests.arm.install_runtime

apt fetches packages as the system's own sources name them, into folders of its own, and they are unpacked without being
installed. Exits with 1 and the reason in one line where something is missing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.arm.machines import FOLDER, INSTALLED, MACHINES, why_missing

_CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def main() -> None:
    """Installs what is not there yet."""
    pins = dict(re.findall(r"^(onnxruntime|numpy)==(\S+)$", _CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    if INSTALLED.exists() and json.loads(INSTALLED.read_text(encoding="utf-8"))["packages"] == pins:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    reason = why_missing()
    if reason is not None and "make test-arm" not in reason:
        sys.exit(reason)
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        sys.exit("there are no apt-get and dpkg to fetch an arm64 Python with")
    root, apt = FOLDER / "root", FOLDER / "apt"
    _unpack(_packages(apt), root)
    python = _python(root)
    _wheels(FOLDER / "site", python.name.removeprefix("python"), pins)
    shutil.rmtree(apt)
    _make_machines(root)
    told = {"packages": pins, "python": str(python.relative_to(FOLDER))}
    INSTALLED.write_text(json.dumps(told), encoding="utf-8")


def _packages(apt: Path) -> list[Path]:
    """Downloads an arm64 Python and all that it depends on; returns the packages."""
    for name in ("lists/partial", "cache/archives/partial", "log"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "1",
        "Dir::State": str(apt),
        "Dir::State::Lists": str(apt / "lists"),
        "Dir::State::status": str(apt / "status"),
        "Dir::Cache": str(apt / "cache"),
        "Dir::Log": str(apt / "log"),
    }
    apt_get = ["apt-get", "--quiet", *(f"--option={name}={value}" for name, value in options.items())]
    _call([*apt_get, "update"], "the lists of arm64 packages cannot be fetched")
    wanted = ["install", "--yes", "--download-only", "--no-install-recommends", *_PACKAGES]
    _call([*apt_get, *wanted], "the packages of an arm64 Python cannot be fetched")
    return sorted((apt / "cache" / "archives").glob("*.deb"))


def _unpack(packages: list[Path], root: Path) -> None:
    (root / "usr" / "lib").mkdir(parents=True)
    # Packages disagree on which of the two they write to.
    (root / "lib").symlink_to("usr/lib")
    for package in packages:
        _call(["dpkg", "--extract", package, root], f"{package.name} cannot be unpacked")


def _python(root: Path) -> Path:
    found = [path for path in (root / "usr/bin").iterdir() if re.fullmatch(r"python3\.\d+", path.name)]
    if not found:
        sys.exit("the arm64 packages hold no Python")
    return found[0]


def _wheels(site: Path, version: str, pins: dict[str, str]) -> None:
    platforms = [f"--platform={name}" for name in _PLATFORMS]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target", site]
    form = ["--no-deps", "--only-binary=:all:", f"--python-version={version}", "--implementation=cp", *platforms]
    # numpy in the version that has a package for the Python of this system.
    _call([*pip, *form, f"onnxruntime=={pins['onnxruntime']}", "numpy"], "the aarch64 packages cannot be fetched")


def _make_machines(root: Path) -> None:
    """Makes the folders that qemu looks into: each holds the system, and what Linux tells of its processor.

    qemu hands out the host's /proc/cpuinfo, and from 1.28 on onnxruntime reads a null pointer where that is not of ARM.
    """
    for machine in MACHINES:
        machine.root.mkdir()
        for part in ("usr", "lib", "etc"):
            (machine.root / part).symlink_to(f"../{root.name}/{part}")
        (machine.root / "proc").mkdir()
        (machine.root / "proc" / "cpuinfo").write_text(machine.cpuinfo, encoding="utf-8")


def _call(command: list[str | Path], problem: str) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        sys.exit(f"{problem}: {lines[-1] if lines else done.returncode}")


if __name__ == "__main__":
    main()
