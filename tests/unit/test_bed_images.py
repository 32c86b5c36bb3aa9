"""How the test bed's images are made: from which archives, whole or not at all, and once."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from checks.bed import images, settings, sources
from reconciler.errors import PermanentError
from tests.support.needs import needs_root

_STANZAS = """\
Types: deb
# a comment in between
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
  bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/security/
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://vendor.example/apt
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg
"""
_LINES = """\
# deb http://off.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.example/apt bookworm main
deb http://vendor.example/other cloud-bookworm main
deb http://vendor.example/third bookworm stable
deb [arch=amd64] http://mirror.example/debian bookworm main contrib  # ours
"""


def _etc(folder: Path, name: str = "", text: str = "") -> Path:
    (folder / "apt/sources.list.d").mkdir(parents=True)
    (folder / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    if name:
        (folder / "apt" / name).write_text(text)
    return folder


def _asked(text: str) -> set[tuple[str, ...]]:
    return {tuple(word for word in line.split() if not word.startswith("[")) for line in text.splitlines()}


def test_the_machines_own_archives_of_debian_are_asked_for_the_other_release(tmp_path: Path) -> None:
    etc = _etc(tmp_path, "sources.list.d/debian.sources", _STANZAS)
    assert _asked(sources.for_suite("trixie", etc)) == {
        ("deb", "http://mirror.example/debian", "trixie", "main"),
        ("deb", "http://mirror.example/debian", "trixie-updates", "main"),
        ("deb", "http://mirror.example/security/", "trixie-security", "main"),
    }


def test_the_older_format_of_apt_is_read_too_and_vendors_are_left_out(tmp_path: Path) -> None:
    etc = _etc(tmp_path, "sources.list", _LINES)
    assert _asked(sources.for_suite("bookworm", etc)) == {
        ("deb", "http://mirror.example/debian", "bookworm", "main")
    }


def test_a_machine_without_an_archive_of_debian_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="names no archive of Debian bookworm"):
        sources.for_suite("trixie", _etc(tmp_path))


@needs_root
class TestParts:
    def test_what_fails_half_way_leaves_nothing_behind(self, tmp_path: Path) -> None:
        def fail(_at: object, path: Path) -> None:
            path.mkdir()
            raise PermanentError("half way")

        with pytest.raises(PermanentError):
            images.part("part", tmp_path / "one", fail)
        assert list(tmp_path.iterdir()) == []

    def test_it_can_be_read_by_others_whatever_the_makers_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            images.part("part", tmp_path / "one", lambda _at, path: settings.write(path))
            assert os.umask(0o077) == 0o077
        finally:
            os.umask(before)
        for path, mode in (("one", 0o755), ("one/etc/nix", 0o755), ("one/etc/hosts", 0o644)):
            assert (tmp_path / path).stat().st_mode & 0o777 == mode

    def test_two_makers_at_once_make_it_once(self, tmp_path: Path) -> None:
        made: list[Path] = []
        entered, go_on = threading.Event(), threading.Event()

        def make(_at: object, path: Path) -> None:
            made.append(path)
            entered.set()
            assert go_on.wait(10)
            path.mkdir()

        makers = [
            threading.Thread(target=images.part, args=("part", tmp_path / "one", make)) for _ in range(2)
        ]
        makers[0].start()
        assert entered.wait(10)
        makers[1].start()
        go_on.set()
        for maker in makers:
            maker.join(10)
        assert len(made) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["one"]

    def test_making_removes_what_an_interrupted_maker_left_and_what_nobody_used(self, tmp_path: Path) -> None:
        for name, days in ((".new-interrupted", 0), ("unused", 31), ("used", 29)):
            (tmp_path / name).mkdir()
            then = time.time() - days * 86400
            os.utime(tmp_path / name, (then, then))
        images.part("part", tmp_path / "one", lambda _at, path: path.mkdir())
        assert {path.name for path in tmp_path.iterdir()} == {"used", "one"}

    def test_using_a_part_keeps_it_from_being_removed(self, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        os.utime(tmp_path / "one", (0, 0))
        images.part("part", tmp_path / "one", lambda _at, path: pytest.fail("it is there"))
        assert time.time() - (tmp_path / "one").stat().st_mtime < 60


def test_settings_never_write_into_a_file_of_the_image(tmp_path: Path) -> None:
    image, staged = tmp_path / "image/etc", tmp_path / "staged/etc"
    image.mkdir(parents=True)
    staged.mkdir(parents=True)
    (image / "hostname").write_text("of the image\n")
    (staged / "hostname").hardlink_to(image / "hostname")
    settings.write(tmp_path / "staged")
    settings.write(tmp_path / "staged")
    assert (image / "hostname").read_text() == "of the image\n"
    assert (staged / "hostname").read_text() == "bed\n"
    assert (staged / "systemd/system/fstrim.timer").readlink() == Path("/dev/null")
