"""The demo's folder: the copy of the clone, and who may use the folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from reconciler.demo.main import last_words, read_credential
from reconciler.demo.place import Place, start_time, sync_source
from reconciler.errors import OperatorError


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone made under umask 077 in a folder that nobody else may enter."""
    root = tmp_path / "clone"
    for name in (
        "reconciler/model/ids.py",
        "tests/test_x.py",
        ".git/config",
        "node_modules/x/y.js",
        ".demo/z",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o600)
    tool = root / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o700)
    (root / "link").symlink_to("tool")
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o700)
    return root


@pytest.fixture
def where(clone: Path) -> Place:
    made = Place.of(str(clone / ".demo2"))
    made.make()
    return made


def copied(where: Place) -> dict[str, str]:
    return {
        str(p.relative_to(where.source)): stat.filemode(p.lstat().st_mode)
        for p in sorted(where.source.rglob("*"))
        if not p.name.startswith(".")
    }


def test_the_copy_is_readable_to_everybody_and_holds_the_program_only(clone: Path, where: Place) -> None:
    sync_source(clone, where)
    assert copied(where) == {
        "link": "lrwxrwxrwx",
        "reconciler": "drwxr-xr-x",
        "reconciler/model": "drwxr-xr-x",
        "reconciler/model/ids.py": "-rw-r--r--",
        "tool": "-rwxr-xr-x",
    }
    assert (where.source / "link").readlink() == Path("tool")


def test_the_copy_follows_the_clone_and_touches_what_changed_only(clone: Path, where: Place) -> None:
    assert sync_source(clone, where) == 3
    assert sync_source(clone, where) == 0
    (clone / "reconciler/model/ids.py").write_text("new text")
    (clone / "tool").unlink()
    (clone / "link").unlink()
    (clone / "link").mkdir()
    cache = where.source / "reconciler/model/__pycache__/ids.pyc"
    cache.parent.mkdir()
    cache.touch()
    assert sync_source(clone, where) == 1
    assert (where.source / "reconciler/model/ids.py").read_text() == "new text"
    assert sorted(p.name for p in where.source.iterdir() if p.name[0] != ".") == ["link", "reconciler"]
    assert cache.exists(), "compiled files stay beside their source"


def test_a_removed_package_leaves_nothing_behind(clone: Path, where: Place) -> None:
    sync_source(clone, where)
    (where.source / "reconciler/model/__pycache__").mkdir()
    (clone / "reconciler/model/ids.py").unlink()
    (clone / "reconciler/model").rmdir()
    sync_source(clone, where)
    assert not (where.source / "reconciler/model").exists()


def test_one_holder_of_the_lock_at_a_time(where: Place) -> None:
    assert not where.is_locked()
    handle = where.lock()
    assert where.is_locked()
    with pytest.raises(OperatorError, match="a demo is running"):
        where.lock()
    os.close(handle)
    assert not where.is_locked()


def test_the_folder_itself_is_closed_to_others(where: Place) -> None:
    assert stat.S_IMODE(where.root.stat().st_mode) == 0o700


def test_a_start_time_names_a_process_and_none_names_nobody() -> None:
    assert start_time(os.getpid()) == start_time(os.getpid()) is not None
    assert start_time(2**30) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [("sk-ant-api03-abc", "api-key"), (" sk-ant-api03-abc\n", "api-key"), ("sk-ant-oat01-abc", "bearer")],
)
def test_a_key_and_a_token_are_told_apart_and_not_shown(text: str, kind: str) -> None:
    found = read_credential(None, text)
    assert found is not None
    assert (found.secret, found.kind) == (text.strip(), kind)
    assert text.strip() not in repr(found)


def test_no_key_means_the_scripted_model() -> None:
    assert read_credential(None, "") is None
    assert read_credential(None, " \n") is None


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ('{"event": "step", "level": "info"}\n', ""),
        ('{"event": "step", "level": "info"}\nKeyError: 3\n', "KeyError: 3"),
        ('{"event": "x", "level": "error"}\n', '{"event": "x", "level": "error"}'),
        ("", ""),
    ],
)
def test_an_ordinary_line_of_a_log_does_not_say_why_a_service_ended(
    tmp_path: Path, log: str, words: str
) -> None:
    (tmp_path / "x.log").write_text(log)
    assert last_words(tmp_path / "x.log") == words
