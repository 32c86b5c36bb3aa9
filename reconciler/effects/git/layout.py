"""What a repository of ours is made of, and how one that comes from elsewhere becomes one of ours."""

from __future__ import annotations

import shutil
from pathlib import Path

CONFIG = """\
[core]
\trepositoryFormatVersion = 0
\tbare = true
\thooksPath = /dev/null
\tlogAllRefUpdates = true
[transfer]
\tfsckObjects = true
[receive]
\tdenyDeletes = true
[gc]
\tauto = 0
"""

_KEPT = frozenset({"HEAD", "config", "logs", "objects", "packed-refs", "refs"})
_ELSEWHERE = ("objects/info/alternates", "objects/info/http-alternates")


def disarm(repository: Path) -> list[str]:
    """Leave objects and refs, and nothing by which git would run programs or look elsewhere; the names of
    what was removed or replaced, sorted. No file of it is followed: a restored one holds no links."""
    found = [path for path in repository.iterdir() if path.name not in _KEPT]
    found += [path for path in map(repository.joinpath, _ELSEWHERE) if path.exists()]
    changed = [str(path.relative_to(repository)) for path in found]
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    config = repository / "config"
    if not config.is_file() or config.read_bytes() != CONFIG.encode():
        changed.append("config")
        if config.is_dir():
            shutil.rmtree(config)
        config.write_text(CONFIG)
        config.chmod(0o600)
    return sorted(changed)
