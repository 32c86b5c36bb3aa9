"""An agent's side of git: ordinary commits, and objects that no git would write by itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from reconciler.model.names import Commit

NOBODY = (65534, 65534)
EMPTY = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_WHO = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "agent"), ("EMAIL", "agent@hive"), ("DATE", "1700000000 +0000"))
}

Item = tuple[str, bytes, str]


class Agent:
    """A repository that belongs to an agent, and the bundles it makes."""

    def __init__(self, place: Path) -> None:
        self.path = place
        place.mkdir()
        self.git("init", "--quiet", "--bare", "--initial-branch=main", ".")

    def git(self, *arguments: str, stdin: bytes | None = None, **env: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            input=stdin,
            check=True,
            capture_output=True,
            env={
                "PATH": os.environ["PATH"],
                "HOME": "/nonexistent",
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": "/dev/null",
                **_WHO,
                **env,
            },
        )
        return done.stdout.decode().strip()

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", stdin=content)

    def tree(self, items: Sequence[Item]) -> str:
        """A tree of (mode, name, object id), written as it is given: any name, any order."""
        raw = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in items)
        return self.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=raw)

    def commit(self, tree: str, *parents: str, message: str = "a change") -> Commit:
        flags = [flag for parent in parents for flag in ("-p", parent)]
        return Commit(self.git("commit-tree", tree, *flags, "-m", message))

    def files(self, files: dict[str, bytes], *parents: str) -> Commit:
        """An ordinary commit."""
        index = str(self.path / "index.tmp")
        (self.path / "index.tmp").unlink(missing_ok=True)
        for path, content in files.items():
            entry = f"100644,{self.blob(content)},{path}"
            self.git("update-index", "--add", "--cacheinfo", entry, GIT_INDEX_FILE=index)
        return self.commit(self.git("write-tree", GIT_INDEX_FILE=index), *parents)

    def bundle(self, *commits: str, arguments: Sequence[str] = ()) -> Path:
        """A bundle with a branch for each commit."""
        refs = []
        for number, commit in enumerate(commits):
            refs.append(f"refs/heads/b{number}")
            self.git("update-ref", refs[-1], commit)
        target = self.path / f"{commits[0][:12]}.bundle"
        self.git("bundle", "create", "--quiet", *arguments, str(target), *refs)
        return target
