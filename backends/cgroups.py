"""What a container may use: the limits of this process's control groups, version 1 or 2, its own and those above it.

https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, memory.max) and cgroup-v1 (cpu.cfs_quota_us,
memory.limit_in_bytes). Every function takes the root of the file system and answers None where nothing limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT_BYTES = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of a page."""


def text_of(path: Path) -> str:
    """The file's text, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of its ancestors, for one controller."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        below = Path(group.lstrip("/"))
        yield from dict.fromkeys(mount / part for mount in mounts for part in (below, *below.parents))


def cpu_quota(root: Path) -> float | None:
    """The CPUs' worth of time that the tightest group allows."""
    quotas = []
    for folder in _folders(root, "cpu"):
        words = text_of(folder / "cpu.max").split() or [
            text_of(folder / "cpu.cfs_quota_us").strip(),
            text_of(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, left) in bytes of every group that has a limit. What the kernel can drop of files counts as left."""
    limits = []
    for folder in _folders(root, "memory"):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, usage = text_of(folder / limit_name).strip(), text_of(folder / usage_name).strip()
            if limit.isdigit() and int(limit) < _NO_LIMIT_BYTES:
                used = max(int(usage or 0) - _inactive_file_bytes(folder), 0)
                limits.append((int(limit), max(int(limit) - used, 0)))
    return limits


def _inactive_file_bytes(folder: Path) -> int:
    """Page cache that has not been used of late, of the group and those below it."""
    fields = dict(line.split() for line in text_of(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
