"""What `make demo` refuses, that it says what to do, and that it has changed nothing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.demo.install import CLONE
from reconciler.demo.place import Place

DEMO = (sys.executable, "-m", "reconciler.demo")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to be told about what comes after that"
)


def run(
    *argv: str, demo_dir: Path, port: int | str = 7998, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=CLONE,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(CLONE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DEMO_DIR": str(demo_dir),
            "HIVE_PORT": str(port),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


@needs_root
def test_a_taken_port_is_refused_with_another_one_named(tmp_path: Path, taken_port: int) -> None:
    done = run(*DEMO, demo_dir=tmp_path / "demo", port=taken_port)
    refused(done, f"127.0.0.1:{taken_port} cannot be used", f"HIVE_PORT={taken_port + 1} make demo")
    assert re.search(r"checks +failed(  \(\d+\.\d s\))?\n\Z", done.stdout), done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_user_who_is_not_root_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "clone"  # the clone itself may lie where nobody but root can read
    shutil.copytree(CLONE / "reconciler", copy / "reconciler", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CLONE / "requirements", copy / "requirements")
    for name in ("package-lock.json",):
        shutil.copy(CLONE / name, copy / name)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    before = sorted(copy.rglob("*"))
    unprivileged = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
    argv = (*unprivileged, "/usr/bin/python3", "-m", "reconciler.demo")
    done = run(*argv, demo_dir=copy / ".demo", PYTHONPATH=str(copy))
    refused(done, "needs root", "uid 65534", "sudo make demo")
    assert sorted(copy.rglob("*")) == before
    if os.geteuid() == 0:  # root's demo is there already, and closed to others
        Place.of(str(copy / ".demo")).make()
        refused(run(*argv, demo_dir=copy / ".demo", PYTHONPATH=str(copy)), "is closed to uid 65534")
        done = run(*argv, "--reset", demo_dir=copy / ".demo", PYTHONPATH=str(copy))
        refused(done, "is closed to uid 65534", "sudo")


@needs_root
def test_a_folder_of_somebody_else_is_neither_used_nor_wiped(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    refused(run(*DEMO, demo_dir=tmp_path), "was not made by the demo", "DEMO_DIR=")
    refused(run(*DEMO, "--reset", demo_dir=tmp_path), "was not made by the demo")
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    refused(run(*DEMO, demo_dir=tmp_path / "precious"), "was not made by the demo")
    assert (tmp_path / "precious").read_text() == "data"


@needs_root
def test_a_second_demo_in_the_same_folder_is_refused_and_so_is_wiping_it(tmp_path: Path) -> None:
    where = Place.of(str(tmp_path / "demo"))
    where.make()
    lock = where.lock()
    try:
        before = sorted(where.root.rglob("*"))
        refused(run(*DEMO, demo_dir=where.root), "a demo is running in", "HIVE_PORT=7001")
        refused(run(*DEMO, "--reset", demo_dir=where.root), "a demo is running in")
        assert sorted(where.root.rglob("*")) == before
    finally:
        os.close(lock)


@needs_root
def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, taken_port: int) -> None:
    (tmp_path / "precious").touch()
    done = run(*DEMO, demo_dir=tmp_path, port=taken_port)
    refused(done, "was not made by the demo", "cannot be used", "nothing was changed")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "7000.0", "٧٠٠٠"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    refused(run(*DEMO, demo_dir=tmp_path / "demo", port=port), "HIVE_PORT is")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "two words", "a\x00b", "ключ"])
def test_a_token_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    refused(run(*DEMO, "--token-file", str(token), demo_dir=tmp_path / "demo"), str(token))
    assert [p.name for p in tmp_path.iterdir()] == ["token"]


def test_a_token_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    refused(run(*DEMO, "--token-file", missing, demo_dir=tmp_path / "demo"), missing, "cannot be read")


@needs_root
def test_reset_wipes_what_the_demo_made_and_says_when_there_is_nothing(tmp_path: Path) -> None:
    where = Place.of(str(tmp_path / "demo"))
    where.make()
    # Deeper than the recursion of Python, as an agent may leave it; in shell, as paths get too long.
    script = "for n in $(seq 1500); do mkdir d && cd -P d || exit 1; done"
    subprocess.run(["sh", "-c", script], cwd=where.state, check=True, timeout=60)
    done = run(*DEMO, "--reset", demo_dir=where.root)
    assert (done.returncode, where.root.exists()) == (0, False)
    assert "nothing to do" in run(*DEMO, "--reset", demo_dir=where.root).stdout
