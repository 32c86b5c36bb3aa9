"""The demo's folder (`DEMO_DIR`): who owns it, what lies where, and that only one demo runs in it.

.hyperhive-demo   marker: made by us, may be wiped by us
lock              held by the running demo, by every process of it that matters
world             "PID STARTTIME" of the world's first process, as the host sees it
env, bin/hive     for the operator's shell
source/           the copy of the clone that the world sees as /opt/hyperhive
nix/, state/      the world's /nix and /var/lib/hyperhive
root/             empty; the mount point of the world's root
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.errors import OperatorError

_MARKER = ".hyperhive-demo"
_MARKER_TEXT = "The state of a hyperhive demo. `make demo-reset` wipes this folder.\n"
# The world needs no history, no tests, no caches; hidden folders are tools' own.
_LEFT_OUT = frozenset({"bench", "checks", "docs", "requirements", "test-results", "tests"})
_NOWHERE = frozenset({"__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Place:
    """An absolute `DEMO_DIR`, which need not exist yet."""

    root: Path

    @classmethod
    def of(cls, path: str) -> Place:
        """The place at a path as a person gives it."""
        return cls(Path(path).resolve())

    @property
    def marker(self) -> Path:
        return self.root / _MARKER

    @property
    def record(self) -> Path:
        return self.root / "world"

    @property
    def source(self) -> Path:
        return self.root / "source"

    @property
    def nix(self) -> Path:
        return self.root / "nix"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def mount_point(self) -> Path:
        return self.root / "root"

    def is_free_or_ours(self) -> bool:
        """Whether we may write here: absent, empty, or marked. `OperatorError` if we may not even look."""
        if not os.path.lexists(self.root):
            return True
        if not self.root.is_dir():
            return False
        if not os.access(self.root, os.R_OK | os.X_OK):
            raise OperatorError(
                f"{self.root} is closed to uid {os.geteuid()}", hint="a demo belongs to root: use sudo"
            )
        return self.marker.is_file() or not any(self.root.iterdir())

    def make(self) -> None:
        """The folders and the marker. 0700: unprivileged users of the host see nothing of it."""
        if not self.is_free_or_ours():
            raise foreign(self)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        self.marker.write_text(_MARKER_TEXT)
        for folder in (self.source, self.nix, self.state, self.mount_point, self.root / "bin"):
            folder.mkdir(mode=0o755, exist_ok=True)

    def lock(self) -> int:
        """A descriptor that holds the lock until the last process that inherited it has gone."""
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise running(self) from None
        return handle

    def is_locked(self) -> bool:
        """Whether a demo runs here; changes nothing."""
        try:
            handle = os.open(self.root / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def wipe(self) -> bool:
        """Removes the folder; False if there was none. Refuses what is not ours, or in use."""
        if not os.path.lexists(self.root):
            return False
        if not self.is_free_or_ours():
            raise foreign(self)
        if self.is_locked():
            raise running(self)
        # Trees of agents may be deeper than Python's recursion; rm is made for that.
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(self.root)], check=True, timeout=600)
        return True


def foreign(place: Place) -> OperatorError:
    """The refusal of a folder that somebody else made."""
    return OperatorError(
        f"{place.root} exists and was not made by the demo, so it is left alone",
        hint="give the demo a folder of its own: DEMO_DIR=/some/new/folder make demo",
        code="conflict",
    )


def running(place: Place) -> OperatorError:
    """The refusal of a second demo in the same folder."""
    return OperatorError(
        f"a demo is running in {place.root}",
        hint="stop it first (Ctrl-C where it runs), or run another one beside it:\n"
        "DEMO_DIR=/another/folder HIVE_PORT=7001 make demo",
        code="conflict",
    )


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (clock ticks after boot): with the pid, it names a process for ever."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def write_shell_files(place: Place) -> None:
    """`env` for the operator's shell, and the `hive` that enters the running world."""
    folder = shlex.quote(str(place.root))
    (place.root / "env").write_text(
        f"# . {place.root}/env\n"
        f'case ":$PATH:" in\n  *:{folder}/bin:*) ;;\n  *) PATH={folder}/bin:$PATH ;;\nesac\nexport PATH\n'
    )
    hive = place.root / "bin" / "hive"
    hive.write_text(_HIVE.replace("@RECORD@", shlex.quote(str(place.record))))
    hive.chmod(0o755)


# No `env -i`: the command line inside sees the operator's own environment (NO_COLOR, TERM, HIVE_*), without
# the key that only the gateway may hold and without what would lead Python or the loader astray.
_HIVE = """\
#!/bin/sh
# Runs the hive command line inside the demo's world.
pid='' started=''
{ read -r pid started < @RECORD@; } 2>/dev/null
is_running() {
    [ -n "$started" ] || return 1
    IFS= read -r line 2>/dev/null < "/proc/$pid/stat" || return 1
    set -- ${line##*)}
    [ "$1" != Z ] && [ "${20}" = "$started" ]
}
if [ "$(id -u)" != 0 ]; then
    echo 'error: the demo belongs to root, and so does its command line: run this as root' >&2
    exit 1
fi
if ! is_running; then
    echo 'error: the demo is not running; start it with `make demo`' >&2
    exit 1
fi
unset ANTHROPIC_API_KEY LD_LIBRARY_PATH LD_PRELOAD PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PYTHONPATH=/opt/hyperhive PYTHONSAFEPATH=1 HIVE_DEMO=1
exec nsenter --target "$pid" --mount --pid --root --wd -- \\
    /opt/hyperhive/.venv/bin/python -m reconciler.cli "$@"
"""


def sync_source(clone: Path, place: Place) -> int:
    """Makes `source/` equal to the clone, readable by everybody whatever the clone's umask was; returns the
    number of files that changed. Compiled files stay where their source does.
    """
    wanted: set[Path] = set()
    changed = 0
    for path in _tree(clone, place.root):
        relative = path.relative_to(clone)
        wanted.add(relative)
        changed += _copy(path, place.source / relative)
    for folder, folders, files in os.walk(place.source, topdown=False):
        here = Path(folder)
        for name in files:
            if (here / name).relative_to(place.source) not in wanted and not _is_compiled(here / name):
                (here / name).unlink()
        for name in folders:
            if (here / name).is_symlink():
                if (here / name).relative_to(place.source) not in wanted:
                    (here / name).unlink()
            elif (here / name).relative_to(place.source) not in wanted and name != "__pycache__":
                shutil.rmtree(here / name)
    for mount_point in (".venv", ".venv-harness"):
        (place.source / mount_point).mkdir(exist_ok=True)
    return changed


def _is_compiled(path: Path) -> bool:
    return path.parent.name == "__pycache__"


def _tree(clone: Path, left_out: Path) -> Iterator[Path]:
    """Folders before their contents; symlinks as themselves."""
    for folder, folders, files in os.walk(clone):
        here = Path(folder)
        top = here == clone
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _NOWHERE
            and not (top and name in _LEFT_OUT)
            and here / name != left_out
        ]
        yield from (here / name for name in folders)
        yield from (here / name for name in files if not name.startswith("."))


def _copy(source: Path, target: Path) -> int:
    found = source.lstat()
    if stat.S_ISDIR(found.st_mode):
        if not target.is_dir() or target.is_symlink():
            target.unlink(missing_ok=True)
            target.mkdir()
        target.chmod(0o755)
        return 0
    if stat.S_ISLNK(found.st_mode):
        link = source.readlink()
        if target.is_symlink() and target.readlink() == link:
            return 0
        _clear(target)
        target.symlink_to(link)
        return 1
    if not stat.S_ISREG(found.st_mode):
        return 0
    if _is_same(target, found):
        return 0
    _clear(target)
    shutil.copyfile(source, target)
    target.chmod(0o755 if found.st_mode & 0o100 else 0o644)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    return 1


def _is_same(target: Path, source: os.stat_result) -> bool:
    try:
        there = target.lstat()
    except FileNotFoundError:
        return False
    executable = bool(source.st_mode & 0o100) == bool(there.st_mode & 0o100)
    return (
        stat.S_ISREG(there.st_mode)
        and executable
        and (there.st_size, there.st_mtime_ns) == (source.st_size, source.st_mtime_ns)
    )


def _clear(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
