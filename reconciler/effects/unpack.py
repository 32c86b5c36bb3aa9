"""Run by `hostfiles.py` as the agent's uid: unpack a checked tar (standard input) into the working directory.

Standard library only and self-contained: it is handed to the interpreter as text, since that uid may not be
able to read the product's files. Every step goes through a directory descriptor without following links, so a
hostile tree that is already there can mislead it nowhere; ownership and modes of the tar are not taken over.
"""

import contextlib
import os
import sys
import tarfile

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def main() -> None:
    """Directories 0755, files 0644 (0755 if executable for their owner); what is in the way of a file
    goes."""
    root = os.open(".", _DIRECTORY)
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            parts = [part for part in member.name.split("/") if part not in {"", "."}]
            if ".." in parts or not (member.isreg() or member.isdir()):
                raise SystemExit(f"{member.name!r} was never checked")
            if member.isdir():
                os.close(_enter(root, parts))
                continue
            parent = _enter(root, parts[:-1])
            try:
                _write(archive, member, parent, parts[-1])
            finally:
                os.close(parent)


def _enter(root: int, parts: list[str]) -> int:
    """A descriptor of the directory, made as far as it is missing."""
    here = os.dup(root)
    for part in parts:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            deeper = os.open(part, _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = deeper
    return here


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
    source = archive.extractfile(member)
    assert source is not None
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)
    mode = 0o755 if member.mode & 0o100 else 0o644
    with os.fdopen(os.open(name, _FILE, mode, dir_fd=parent), "wb") as target:
        while data := source.read(1 << 20):
            target.write(data)


if __name__ == "__main__":
    main()
