"""Installs onnxruntime's aarch64 wheel with an arm64 Python in .arm64, for `make test-arm`; nothing of the system changes.

Run: python tests/arm/install_runtime.py

apt fetches the packages, as the system's own sources name them, into folders of its own; they are unpacked without being
installed. Exits with 1 and the reason in one line where something is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".arm64"
ONNXRUNTIME = "1.27.0"
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def main() -> None:
    """Installs what is not there yet."""
    if shutil.which("qemu-aarch64") is None:
        sys.exit("there is no qemu-aarch64 to emulate 64-bit ARM (Debian: apt install qemu-user)")
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        sys.exit("there are no apt-get and dpkg to fetch an arm64 Python with")
    done = FOLDER / "installed.json"
    if done.exists() and json.loads(done.read_text(encoding="utf-8"))["onnxruntime"] == ONNXRUNTIME:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    root, site, apt = FOLDER / "root", FOLDER / "site", FOLDER / "apt"
    _unpack(_packages(apt), root)
    python = _python(root)
    _wheels(site, python.name.removeprefix("python"))
    shutil.rmtree(apt)
    told = {"onnxruntime": ONNXRUNTIME, "python": str(python.relative_to(FOLDER))}
    done.write_text(json.dumps(told), encoding="utf-8")


def _packages(apt: Path) -> list[Path]:
    """Downloads an arm64 Python and all that it depends on; returns the packages."""
    for name in ("lists/partial", "cache/archives/partial", "log"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Get::List-Cleanup": "false",
        "APT::Sandbox::User": "root" if os.getuid() == 0 else "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "1",
        "Dir::State": str(apt),
        "Dir::State::Lists": str(apt / "lists"),
        "Dir::State::status": str(apt / "status"),
        "Dir::Cache": str(apt / "cache"),
        "Dir::Log": str(apt / "log"),
    }
    command = ["apt-get", "--quiet", *(f"--option={name}={value}" for name, value in options.items() if value)]
    _call([*command, "update"], "the package lists of arm64 cannot be fetched")
    wanted = ["install", "--yes", "--download-only", "--no-install-recommends", *_PACKAGES]
    _call([*command, *wanted], "the packages of an arm64 Python cannot be fetched")
    return sorted((apt / "cache" / "archives").glob("*.deb"))


def _unpack(packages: list[Path], root: Path) -> None:
    root.mkdir(parents=True)
    for name in ("lib", "lib64", "bin", "sbin"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        _call(["dpkg", "--extract", package, root], f"{package.name} cannot be unpacked")


def _python(root: Path) -> Path:
    found = [path for path in (root / "usr/bin").iterdir() if re.fullmatch(r"python3\.\d+", path.name)]
    if not found:
        sys.exit("the arm64 packages hold no Python")
    return found[0]


def _wheels(site: Path, version: str) -> None:
    platforms = [f"--platform={name}" for name in _PLATFORMS]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--target", site]
    form = ["--no-deps", "--only-binary=:all:", f"--python-version={version}", "--implementation=cp", *platforms]
    _call([*pip, *form, f"onnxruntime=={ONNXRUNTIME}", "numpy"], "the aarch64 wheels cannot be fetched")


def _call(command: list[str | Path], problem: str) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        sys.exit(f"{problem}: {lines[-1] if lines else done.returncode}")


if __name__ == "__main__":
    main()
