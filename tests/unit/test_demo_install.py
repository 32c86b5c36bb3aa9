"""The installer: what counts as installed, and that what it installs is pinned."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.demo import install
from reconciler.errors import PermanentError

ROOT = Path(__file__).parents[2]

REQUIREMENTS = install.CLONE / "requirements"
LOCKS = sorted(REQUIREMENTS.glob("*.txt"))
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)", re.MULTILINE)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "requirements").mkdir()
    for name in ("host", "dev", "harness"):
        (tmp_path / f"requirements/{name}.txt").write_text(f"# {name}\nx==1\n")
        (tmp_path / f".venv{'-harness' if name == 'harness' else ''}").mkdir(exist_ok=True)
    monkeypatch.setattr(install, "CLONE", tmp_path)
    return tmp_path


def stamp(clone: Path, environment: install.Environment) -> None:
    (clone / environment.folder / f".stamp-{environment.name}").write_text(
        install.lock_digest(environment.name)
    )


def test_an_environment_without_a_stamp_is_incomplete_whatever_it_holds(clone: Path) -> None:
    (clone / ".venv/bin").mkdir()
    assert not install.is_complete(install.HOST)


def test_a_changed_pin_makes_an_environment_incomplete_and_a_changed_comment_does_not(clone: Path) -> None:
    stamp(clone, install.HOST)
    (clone / "requirements/host.txt").write_text("# another comment\nx==1\n    # via y\n")
    assert install.is_complete(install.HOST)
    (clone / "requirements/host.txt").write_text("x==2\n")
    assert not install.is_complete(install.HOST)


def test_the_test_environment_serves_the_demo_and_not_the_other_way_round(clone: Path) -> None:
    stamp(clone, install.DEV)
    assert install.is_complete(install.HOST)
    (clone / ".venv/.stamp-dev").unlink()
    stamp(clone, install.HOST)
    assert not install.is_complete(install.DEV)


def test_only_what_is_missing_is_asked_of_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = (install.Package("there", lambda: True), install.Package("missing", lambda: False))
    monkeypatch.setattr(install, "HOST_PACKAGES", packages)
    assert install.missing_packages() == ["missing"]


def test_a_web_asset_that_differs_from_its_hash_is_not_copied(clone: Path) -> None:
    source, target = clone / "a.js", clone / "out/a.js"
    source.write_text("alert(1)")
    with pytest.raises(PermanentError, match="sha256"):
        install._copy_verified(source, target, hashlib.sha256(b"").hexdigest())
    assert not target.exists()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_pin_of_a_lock_has_hashes_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    for block in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]:
        assert PIN.match(block), block[:80]
        assert "--hash=sha256:" in block, block[:80]


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((REQUIREMENTS / f"{name}.txt").read_text()))


def test_the_test_environment_pins_what_the_demo_pins() -> None:
    assert pins("host").items() <= pins("dev").items()


def test_gitpython_has_the_security_releases() -> None:
    version = tuple(int(part) for part in pins("host")["gitpython"].split("."))
    assert version >= (3, 1, 60)


def test_the_list_of_web_assets_and_npms_lock_name_the_same_versions_and_licences() -> None:
    listed = json.loads((REQUIREMENTS / "vendor.json").read_text())["packages"]
    locked = json.loads((install.CLONE / "package-lock.json").read_text())["packages"]
    for name, package in listed.items():
        entry = locked[f"node_modules/{name}"]
        assert (package["version"], package["license"]) == (entry["version"], entry["license"])
        assert entry["integrity"].startswith("sha512-")
        assert any(file["from"].startswith("LICENSE") for file in package["files"])
    assert {f"node_modules/{name}" for name in listed} == set(locked) - {""}


@pytest.mark.parametrize("module", ["main", "control", "launch", "world", "install"])
def test_what_runs_before_anything_is_installed_needs_nothing_installed(module: str) -> None:
    command = [sys.executable, "-S", "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "]
    command[-1] += f"import reconciler.demo.{module}"
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
