"""Real bash in a world of stubs: what a shell text really runs and writes.

A bubblewrap sandbox without network, with a root of its own. PATH leads nowhere and nearly all builtins are
switched off, so every command ends in bash's `command_not_found_handle`, which writes its words down and runs
nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What stays is the shell's own flow, which the policy allows without a pattern. `enable` goes last.
_STUBS = r"""
command_not_found_handle() {
  /usr/bin/printf '%s\0' "$#" "$@" "$PWD" | /usr/bin/tee -a "/trace/log/${0##*/}" /dev/stderr
}
enable -n . [ alias bg bind builtin caller command compgen complete compopt declare dirs disown echo eval \
  exec export fc fg getopts hash help history jobs kill let local logout mapfile popd printf pushd pwd read \
  readarray readonly return set shift shopt source suspend test times trap type typeset ulimit umask unalias \
  unset wait enable
"""
_DRIVER = r"""
ulimit -t 2
for text in /trace/text/*; do
  cd /state
  BASH_ENV=/trace/stubs /usr/bin/timeout 5 \
    /usr/bin/bash --norc --noprofile "$text" < /dev/null > /dev/null 2>&1
done
exit 0
"""
# Files with names that are traps, and places that must stay as they are.
_FILES = (
    "state/a.txt",
    "state/b c",
    "state/-c",
    "state/--output=x",
    "state/push",
    "state/src/a.py",
    "state/src/-x",
    "state/src/x -c y",
    "state/src/$(id)",
    "state/src/;id",
    "state/sub/deep/f",
    "state/.git/config",
    "state/.bashrc",
    "state/.git/hooks/x",
    "config/agent.nix",
    "config/.git/config",
    "etc/passwd",
    "tmp/x",
    "home/agent/.bashrc",
    "home/agent/x",
)
_OPEN = ("state/", "config/")
_CLOSED_PARTS = frozenset({".git", ".bashrc"})
# Variables with values that are traps, too; HOME is what the policy is told.
ENVIRONMENT = {
    "HOME": "/home/agent",
    "PATH": "/nowhere",
    "x": "-c",
    "y": "a -c id",
    "z": "*",
    "w": "push",
    "v": "",
    "u": "id",
    "e": "$(id)",
    "d": "/etc",
    "g": ".git",
}


@dataclass(frozen=True, slots=True)
class Run:
    """A command that was run: its words, and the folder where."""

    words: tuple[str, ...]
    folder: str


class World:
    """One sandbox's files. Texts are run one after another in it; what they write in the work tree stays."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("trace/text", "trace/log", "usr", "proc", "dev", "state/out"):
            (root / folder).mkdir(parents=True)
        for name in _FILES:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("as it was")
        for name in ("state/evil", "state/sub/evil", "evil"):
            (root / name).write_text("#!/usr/bin/bash\n/usr/bin/printf '1\\0evil\\0/\\0' >> /trace/evil\n")
            (root / name).chmod(0o755)
        (root / "state/link").symlink_to("/etc")
        (root / "state/gitlink").symlink_to(".git")
        (root / "state/inner").symlink_to("sub/deep")
        for name in ("bin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        (root / "trace/stubs").write_text(_STUBS)

    def run(self, texts: Sequence[str]) -> list[list[Run]]:
        """Runs each text with bash in /state; the commands of each."""
        for folder in ("text", "log"):
            for path in (self.root / "trace" / folder).iterdir():
                path.unlink()
        for number, text in enumerate(texts):
            (self.root / f"trace/text/{number:04}").write_text(text)
        subprocess.run(
            [
                "bwrap",
                "--unshare-all",
                "--die-with-parent",
                "--bind",
                str(self.root),
                "/",
                "--ro-bind",
                "/usr",
                "/usr",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--clearenv",
                *(word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)),
                "/usr/bin/bash",
                "--norc",
                "--noprofile",
                "-c",
                _DRIVER,
            ],
            check=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        return [self._trace(number) for number in range(len(texts))]

    def damage(self) -> list[str]:
        """Files outside of the open places that are new or changed, and programs of the tree that ran."""
        found = ["/evil ran"] if (self.root / "trace/evil").exists() else []
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            if (
                name.startswith(("trace/", "usr/", "proc/", "dev/"))
                or not path.is_file()
                or path.is_symlink()
            ):
                continue
            is_open = name.startswith(_OPEN) and not _CLOSED_PARTS & set(name.split("/"))
            if not is_open and (
                name not in (*_FILES, "evil") or (name != "evil" and path.read_text() != "as it was")
            ):
                found.append(name)
        return found

    def real(self, path: str) -> str:
        """A path of the sandbox with its links followed."""
        parts = ["/"]
        for part in Path(path).parts[1:]:
            if part == "..":
                parts = parts[:-1] or ["/"]
                continue
            here = self.root.joinpath(*parts[1:], part)
            if here.is_symlink() and len(parts) < 40:
                target = here.readlink()
                whole = target if target.is_absolute() else Path(*parts, target)
                parts = list(Path(self.real(str(whole))).parts)
            else:
                parts.append(part)
        return str(Path(*parts))

    def _trace(self, number: int) -> list[Run]:
        log = self.root / f"trace/log/{number:04}"
        fields = log.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1] if log.exists() else []
        runs = []
        while fields:
            count = int(fields[0])
            runs.append(Run(tuple(fields[1 : count + 1]), fields[count + 1]))
            del fields[: count + 2]
        return runs
