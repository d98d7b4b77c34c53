"""How much memory this process may still take, as Linux tells it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_OWN_MEMORY = Path("/proc/self/status")
_GROUPS = Path("/sys/fs/cgroup")


def available_bytes(*, groups: Path = _GROUPS, own_groups: Path = _OWN_GROUPS, system: Path = _SYSTEM) -> int | None:
    """Returns the bytes that this process may still take; None where the system does not tell.

    Pages of files count as available: the system drops them when it needs their memory. Control groups of both versions
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#memory) and the limits of ``ulimit`` may leave less than it has.

    Args:
        groups: where control groups are mounted.
        own_groups: the file that names those of this process.
        system: the file with the memory of the whole machine.
    """
    found = [_bytes_in(system, "MemAvailable:"), *_within_limits()]
    for folder in _folders(groups, _text(own_groups)):
        found += [
            _left(folder, limit="memory.max", used="memory.current", inactive=("active_file", "inactive_file")),
            _left(
                folder,
                limit="memory.limit_in_bytes",
                used="memory.usage_in_bytes",
                inactive=("total_active_file", "total_inactive_file"),
            ),
        ]
    return min((entry for entry in found if entry is not None), default=None)


def _within_limits() -> Iterator[int]:
    """Yields what the limits on memory leave to this process, where there are any."""
    if sys.platform == "win32":
        return
    import resource

    for limit, name in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        most, _ = resource.getrlimit(limit)
        taken = _bytes_in(_OWN_MEMORY, name)
        if most != resource.RLIM_INFINITY and taken is not None:
            yield max(most - taken, 0)


def _folders(groups: Path, own: str) -> Iterator[Path]:
    """Yields the folders of the groups of both versions that this process is in, and those above."""
    for line in own.splitlines():
        _, controllers, place = line.split(":", 2)
        if not controllers:
            root = groups
        elif "memory" in controllers.split(","):
            root = groups / "memory"
        else:
            continue
        yield root
        # A container sees its own group as the root, though the file may name it by its whole path.
        folder = root
        for part in Path(place).parts[1:]:
            folder = folder / part
            yield folder


def _left(folder: Path, *, limit: str, used: str, inactive: tuple[str, ...]) -> int | None:
    most, taken = _text(folder / limit), _text(folder / used)
    if not (most.isdigit() and taken.isdigit()):
        return None
    files = sum(_bytes_in(folder / "memory.stat", name, unit=1) or 0 for name in inactive)
    return max(int(most) - int(taken) + files, 0)


def _bytes_in(path: Path, name: str, *, unit: int = 1024) -> int | None:
    for line in _text(path).splitlines():
        if line.split()[:1] == [name]:
            return int(line.split()[1]) * unit
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
