"""The flake, its checks and the NixOS modules, as far as they evaluate without nixpkgs.

With HIVE_NIXPKGS_LIB (the `lib` folder of a nixpkgs) the modules' options are evaluated, too; NixOS itself,
its unit types and real packages are not: that needs the network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.config import Config
from tests.integration.nix_kit import PrivateNix, needs_nix, private_nix
from tests.integration.spec_samples import samples_everywhere, verdict

pytestmark = [pytest.mark.integration, needs_nix]
ROOT = Path(__file__).parents[2]
LIB = os.environ.get("HIVE_NIXPKGS_LIB", "")
needs_lib = pytest.mark.skipif(not LIB, reason="set HIVE_NIXPKGS_LIB to the lib folder of a nixpkgs")
FILES = sorted([ROOT / "flake.nix", *ROOT.glob("modules/**/*.nix"), *ROOT.glob("checks/**/*.nix")])


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateNix]:
    with private_nix() as found:
        yield found


@pytest.fixture(scope="module")
def flake(private: PrivateNix) -> str:
    """The flake's files without the rest of the tree, which an evaluation would copy each time."""
    folder = private.path / "flake"
    folder.mkdir()
    for name in ("flake.nix", "flake.lock", "modules", "checks"):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    return f"path:{folder}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_nix_file_parses(path: Path) -> None:
    subprocess.run(["nix-instantiate", "--parse", path], check=True, capture_output=True, timeout=30)


def test_the_flake_gives_its_library_modules_and_templates_without_nixpkgs(
    private: PrivateNix, flake: str
) -> None:
    def names(output: str) -> set[str]:
        return set(
            json.loads(
                private.run("nix", "eval", "--json", f"{flake}#{output}", "--apply", "builtins.attrNames")
            )
        )

    assert names("lib") == {"bare", "mkAgent"}
    assert names("nixosModules") == {"default", "host", "agent"}
    assert names("templates") == {"agent", "host"}
    assert names("checks.x86_64-linux") == {"bare", "agent-template"}


def test_nixpkgs_is_pinned_by_revision_in_flake_and_lock() -> None:
    lock = json.loads((ROOT / "flake.lock").read_text())
    locked = lock["nodes"]["nixpkgs"]["locked"]
    assert len(locked["rev"]) == 40
    assert locked["narHash"].startswith("sha256-")
    assert f"github:NixOS/nixpkgs/{locked['rev']}" in (ROOT / "flake.nix").read_text()


def test_the_flakes_checks_build_offline(private: PrivateNix, flake: str) -> None:
    for name in ("bare", "agent-template"):
        built = json.loads(
            private.run("nix", "build", "--no-link", "--json", f"{flake}#checks.x86_64-linux.{name}")
        )
        assert Path(built[0]["outputs"]["out"]).exists()


def test_an_agents_own_repository_builds_with_the_flakes_library(private: PrivateNix, flake: str) -> None:
    agent = private.path / "agent"
    shutil.copytree(ROOT / "modules/templates/agent", agent)
    override = ("--override-input", "hyperhive", flake, "--no-write-lock-file")
    built = json.loads(private.run("nix", "build", "--no-link", "--json", f"path:{agent}", *override))
    assert (Path(built[0]["outputs"]["out"]) / "etc/hyperhive/spec.json").is_file()
    spec = json.loads(private.run("nix", "eval", "--json", f"path:{agent}#hyperhive.spec", *override))
    assert spec["send"]["allow"] == ["manager", "operator"]


def test_every_case_of_checks_eval_holds() -> None:
    done = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", ROOT / "checks/eval"],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    cases = json.loads(done.stdout)
    assert len(cases) > 10
    assert [name for name, holds in cases.items() if not holds] == []


def nixos(*arguments: str) -> Any:
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://"]
    command += [str(ROOT / "checks/eval/nixos.nix"), "--arg", "lib", LIB, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    return json.loads(done.stdout)


@needs_lib
def test_the_host_module_renders_what_the_configuration_reads() -> None:
    found = nixos()
    rendered = found["plain"]["rendered"]
    parsed = Config.model_validate(rendered)
    assert found["plain"]["failed"] == []
    # Every field has an option, and every default is the program's, but what is of NixOS.
    assert parsed == Config(platform="nixos", state_dir="/var/lib/hyperhive", run_dir="/run/hyperhive")
    flat = Config().model_dump()
    assert set(rendered) == set(flat)
    assert set(rendered["gateway"]) == set(flat["gateway"]) - {"credential_file"}
    for part in ("uid_range", "harness", "timeouts"):
        assert set(rendered[part]) == set(flat[part])


@needs_lib
def test_settings_reach_the_configuration_and_wrong_ones_are_told() -> None:
    found = nixos()
    changed = found["changed"]["rendered"]
    assert changed["ui_port"] == 8080
    assert changed["gateway"]["credential_file"] == "/run/credentials/hive-gateway.service/credential"
    assert found["changed"]["units"]["hive-gateway"]["LoadCredential"] == [
        "credential:/run/secrets/anthropic"
    ]
    assert any("uidRange.end" in message for message in found["changed"]["failed"])
    assert found["secretInStore"] is False
    assert found["disabled"] == {}


@needs_lib
def test_the_agent_module_refuses_what_the_model_refuses(tmp_path: Path) -> None:
    # A set is merged by NixOS's own rules into its parts, so single values are what the types are asked
    # about.
    samples = [sample for sample in samples_everywhere() if "{}" not in json.dumps(sample)]
    file = tmp_path / "samples.json"
    file.write_text(json.dumps(samples))
    different = []
    for sample, theirs in zip(samples, nixos("--arg", "agents", str(file))["agents"], strict=True):
        ours = verdict(sample)
        if ours != theirs:
            different.append((sample, ours is not None, theirs is not None))
    assert different == []
