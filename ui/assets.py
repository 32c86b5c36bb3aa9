"""The files under `static/`, read once at start and served from memory under a path that holds their hash.

One hash over all files, so that relative addresses inside CSS and modules go on working; a page of an older
version asks with the old hash and gets the present file, but may not keep it.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from ui.keys import ASSETS

ROOT = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Assets:
    """`files`: path below `static/` → (content type, content). `digest` is over names and contents."""

    digest: str
    files: dict[str, tuple[str, bytes]]

    def url(self, name: str) -> str:
        """Where browsers get `name`; KeyError when there is no such file."""
        if name not in self.files:
            raise KeyError(f"no asset {name!r} under {ROOT}")
        return f"/static/{self.digest}/{name}"

    def has(self, name: str) -> bool:
        """Whether the file is there: fonts and libraries come with the installer and may be missing."""
        return name in self.files


@functools.cache
def load(root: Path = ROOT) -> Assets:
    """All files of known types below `root`; others (licences, source maps) are not served. Read once: the
    files change with a restart only."""
    files: dict[str, tuple[str, bytes]] = {}
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        kind = _TYPES.get(path.suffix)
        if kind is None or not path.is_file():
            continue
        name, content = path.relative_to(root).as_posix(), path.read_bytes()
        files[name] = (kind, content)
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return Assets(whole.hexdigest()[:12], files)


async def serve(request: web.Request) -> web.Response:
    """GET /static/{digest}/{name}. The name is a key of a table, never a path."""
    assets = request.app[ASSETS]
    found = assets.files.get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    kind, content = found
    current = request.match_info["digest"] == assets.digest
    return web.Response(
        body=content,
        headers={
            "Content-Type": kind,
            "Cache-Control": _FOREVER if current else "no-cache",
        },
    )
