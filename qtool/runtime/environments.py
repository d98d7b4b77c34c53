"""Virtual environments that hold one version of onnxruntime and numpy, made with pip."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from qtool.errors import InputError, OutputError, UsageError
from qtool.private_folder import private_folder, sweep_abandoned

# 1.22, for its newest release, 1.22.1 or 1.22.0rc1.
_VERSION = re.compile(r"\d+\.\d+(\.\d+)?((a|b|rc|\.dev|\.post)\d+)?")
_WITHOUT_RELEASE = re.compile(r"\d+\.\d+")
_OFFERED = re.compile(r"requirement onnxruntime\S* \(from versions: (?P<versions>[^)]*)\)")
# The first one that was built for numpy 2 (https://github.com/microsoft/onnxruntime/releases/tag/v1.19.0).
_FIRST_WITH_NUMPY_2 = (1, 19)
_OFFERED_SHOWN = 4


def checked_versions(text: str) -> tuple[str, ...]:
    """Returns the versions in a list such as ``1.22.1,1.27.0``, each once.

    Raises:
        UsageError: one is none.
    """
    versions = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for version in versions:
        if not _VERSION.fullmatch(version):
            raise UsageError(f"'{version}' is not a version of onnxruntime", fix="list versions such as 1.22.1,1.27.0")
    if not versions:
        raise UsageError("no version of onnxruntime is given", fix="list versions such as 1.22.1,1.27.0")
    return versions


def environment_with(version: str, folder: Path, *, python: Path | None = None) -> Path:
    """Returns the Python of an environment with ``version`` of onnxruntime, which is made where ``folder`` has none.

    Nothing but onnxruntime and numpy is installed, and only wheels are: no package's own code runs. pip takes its
    configuration and its cache as always.

    Args:
        version: as ``checked_versions`` returns it.
        folder: where environments are kept.
        python: the interpreter to make it with; None for this one.

    Raises:
        InputError: the version does not exist, has no wheel for this Python, or cannot be fetched.
        OutputError: the folder cannot be written to.
        UsageError: the interpreter does not run, or cannot make environments.
    """
    maker = Path(sys.executable) if python is None else python
    home = folder / f"onnxruntime-{version}-{_tag(maker)}"
    if not home.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep_abandoned(folder)
            with private_folder(folder) as unfinished:
                _make(maker, unfinished / "made", version)
                (unfinished / "made").rename(home)
        except OSError as error:
            raise OutputError(
                f"cannot make an environment in {folder}: {error.strerror}",
                fix="give another --keep-environments, or free some space",
            ) from error
    return _python_in(home)


def _tag(python: Path) -> str:
    """Returns what tells environments of different Pythons apart, such as ``cpython-312``."""
    told = _run([python, "-I", "-c", "import sys; print(sys.implementation.cache_tag)"])
    if told.returncode:
        raise UsageError(f"{python} is not a Python that runs", fix="give --python the path of an interpreter")
    return told.stdout.strip()


def _make(maker: Path, home: Path, version: str) -> None:
    made = _run([maker, "-I", "-m", "venv", "--without-pip", home])
    if made.returncode:
        raise UsageError(
            f"{maker} cannot make virtual environments: {_last_line(made)}",
            fix="install its venv module (Debian: apt install python3-venv), or give another --python",
        )
    inside = _python_in(home)
    pip: list[str | Path] = [maker, "-m", "pip", "--python", inside]
    # Before 22.3, pip could only install for the Python that it runs in.
    if _run([*pip, "--version"]).returncode:
        pip = [inside, "-m", "pip"]
        brought = _run([inside, "-I", "-m", "ensurepip"])
        if brought.returncode:
            raise UsageError(
                f"{maker} has no pip: {_last_line(brought)}",
                fix="install it (Debian: apt install python3-venv), or give another --python",
            )
    pinned = f"onnxruntime=={version}.*" if _WITHOUT_RELEASE.fullmatch(version) else f"onnxruntime=={version}"
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    numpy = "numpy" if (major, minor) >= _FIRST_WITH_NUMPY_2 else "numpy<2"
    # Only so verbose does pip tell which files do not fit this Python.
    options = ["-vv", "--no-input", "--retries", "2", "--no-deps", "--only-binary", ":all:"]
    done = _run([*pip, "install", *options, pinned, numpy])
    if done.returncode:
        raise _not_installed(version, done)


def _not_installed(version: str, done: subprocess.CompletedProcess[str]) -> InputError:
    """Tells from pip's words why there is nothing to install."""
    said = done.stdout + done.stderr
    offered = _OFFERED.search(said)
    if offered is None:
        return InputError(
            f"pip does not install onnxruntime {version}: {_last_line(done)}",
            fix=f"see what `pip download onnxruntime=={version}` says",
        )
    if re.search(rf"onnxruntime-{re.escape(version)}[.-]\S*\.whl", said):
        return InputError(
            f"onnxruntime {version} has no wheel for this Python on this system",
            fix="give one that it was built for with --python, such as --python python3.10",
        )
    known = [name for name in offered["versions"].split(", ") if name and name != "none"]
    if not known:
        return InputError(
            f"onnxruntime {version} cannot be fetched: the package index is not reached",
            fix="check the network and pip's configuration (`pip config list`)",
        )
    return InputError(
        f"there is no onnxruntime {version}", fix=f"take one of {', '.join(known[-_OFFERED_SHOWN:])}, or an older one"
    )


def _python_in(home: Path) -> Path:
    return home / "Scripts" / "python.exe" if sys.platform == "win32" else home / "bin" / "python"


def _run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        return subprocess.run(
            [str(part) for part in command], capture_output=True, encoding="utf-8", env=environment, check=False
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", error.strerror or "it does not run")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [f"it ended with {done.returncode}"])[-1].strip()
