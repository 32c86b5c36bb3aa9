"""An agent.nix that means harm ends as a clear refusal, soon, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import InvalidError, PermanentError, TemporaryError
from tests.integration.nix_kit import BUILD_USER, PrivateNix, needs_nix, private_nix

pytestmark = [pytest.mark.asyncio, pytest.mark.integration, needs_nix]


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateNix]:
    with private_nix() as found:
        yield found


def tree(private: PrivateNix, text: str) -> Path:
    folder = private.path / uuid.uuid4().hex
    folder.mkdir()
    (folder / "agent.nix").write_text(text)
    return folder


def processes_of_build_user() -> set[str]:
    """Those that run; zombies wait for an init that may be slow."""
    command = ["ps", "-u", BUILD_USER, "-o", "pid=,stat="]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return {line.split()[0] for line in done.stdout.splitlines() if not line.split()[1].startswith("Z")}


def store_entries(private: PrivateNix) -> set[str]:
    store = private.path / "store"
    return {path.name for path in store.iterdir()} if store.exists() else set()


async def refusal(private: PrivateNix, text: str, **timeouts: float) -> str:
    """The message that this agent.nix is refused with; checks that nothing is left."""
    entries, others = store_entries(private), set(processes_of_build_user())
    started = time.monotonic()
    with pytest.raises(InvalidError) as refused:
        await private.effect(**timeouts).evaluate(tree(private, text))
    assert time.monotonic() - started < timeouts.get("examine_s", 20.0) + 5
    # What the kernel still has to tear down (2 GiB of it, at most) is given a moment.
    async with asyncio.timeout(10):
        # Processes that another test left dying may go meanwhile; new ones may not stay.
        while set(processes_of_build_user()) - others:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert store_entries(private) == entries
    assert len(refused.value.message) < 9000
    return refused.value.message


READS = {
    "a file of the host": "builtins.readFile /etc/passwd",
    "a file of the host by string": 'builtins.readFile "/etc/hostname"',
    "a directory of the host": 'builtins.concatStringsSep "" (builtins.attrNames (builtins.readDir /etc))',
    "the processes": "builtins.readFile /proc/self/environ",
    "an import of the host": "import /etc/nixos/configuration.nix",
    "the parent of the tree": "builtins.readFile ../secret",
    "the search path": "import <nixpkgs> { }",
    "a git repository": '(builtins.fetchGit { url = "file:///srv"; rev = "' + "0" * 40 + '"; }).outPath',
    "a tree by path": '(builtins.fetchTree { type = "path"; path = "/etc"; }).outPath',
    "a tarball": 'builtins.fetchTarball "https://example.org/x.tar.gz"',
    "a url": 'builtins.readFile (builtins.fetchurl "http://127.0.0.1:7000/")',
    "a file url": 'builtins.readFile (builtins.fetchurl "file:///etc/passwd")',
    "the store": "builtins.storePath /nix/store/00000000000000000000000000000000-x",
    "a copy into the store": '"${./agent.nix}"',
    "a file of its own making": 'builtins.readFile (builtins.toFile "x" "haiku")',
    "import from derivation": (
        'import (derivation { name = "x"; system = builtins.currentSystem; builder = "/bin/sh"; '
        'args = [ "-c" "echo 1 > $out" ]; })'
    ),
}  # fmt: skip


@pytest.mark.parametrize("expression", READS.values(), ids=READS)
async def test_it_cannot_read(private: PrivateNix, expression: str) -> None:
    message = await refusal(private, f"{{ hyperhive.model = {expression}; }}")
    assert "root:x:0" not in message
    assert "error" in message or "refused" in message


async def test_the_environment_is_empty(private: PrivateNix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    message = await refusal(private, '{ hyperhive.model = "x${builtins.getEnv "ANTHROPIC_API_KEY"}y z"; }')
    assert '"xy z"' in message


async def test_a_link_out_of_the_tree_leads_nowhere(private: PrivateNix) -> None:
    folder = tree(private, "{ hyperhive.model = builtins.readFile ./link; }")
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidError) as refused:
        await private.effect().evaluate(folder)
    assert "root:x:0" not in refused.value.message
    linked = private.path / uuid.uuid4().hex
    linked.mkdir()
    (linked / "agent.nix").symlink_to(folder / "agent.nix")
    with pytest.raises(InvalidError, match=r"no agent\.nix"):
        await private.effect().evaluate(linked)


async def test_endless_recursion_ends(private: PrivateNix) -> None:
    await refusal(private, "let x = x; in { hyperhive.model = x; }")
    await refusal(private, "let f = n: 1 + f (n + 1); in { hyperhive.model = f 0; }")


async def test_a_computation_without_end_is_cut_at_the_deadline(private: PrivateNix) -> None:
    fibonacci = "let f = n: if n < 2 then n else f (n - 1) + f (n - 2); in { hyperhive.model = f 60; }"
    message = await refusal(private, fibonacci, examine_s=1.0)
    assert "longer than 1 s" in message or "processor time" in message


async def test_memory_is_bounded(private: PrivateNix) -> None:
    doubling = 'let f = s: n: if n == 0 then s else f (s + s) (n - 1); in { hyperhive.model = f "x" 40; }'
    message = await refusal(private, doubling)
    assert "does not evaluate" in message or "memory" in message


async def test_messages_are_bounded(private: PrivateNix) -> None:
    flood = """
      let
        line = builtins.concatStringsSep "" (builtins.genList (_: "0123456789") 1000);
        loop = n: if n == 0 then "haiku" else builtins.trace line (loop (n - 1));
      in { hyperhive.model = loop 10000; }
    """
    assert "printed more than" in await refusal(private, flood)


async def test_the_result_is_bounded(private: PrivateNix) -> None:
    big = 'builtins.concatStringsSep "" (builtins.genList (_: "0123456789") 100000)'
    settings = " ".join(f's{n} = {{ command = "x"; args = [ ({big}) ]; }};' for n in range(8))
    message = await refusal(private, f"{{ hyperhive.mcpServers = {{ {settings} }}; }}")
    assert "printed more than" in message


async def test_an_error_of_any_size_is_told_in_8_kib(private: PrivateNix) -> None:
    text = 'throw (builtins.concatStringsSep "" (builtins.genList (_: "0123456789") 10000))'
    assert "0123456789" in await refusal(private, f"{{ hyperhive.model = {text}; }}")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{ lib, ... }: { hyperhive.model = lib.mkIf true "opus"; }', "uses `lib`"),
        ("{ pkgs, ... }: { hyperhive.model = pkgs.hello; }", "uses `pkgs`"),
        ("{ config, ... }: { hyperhive.model = config.hyperhive.role; }", "uses `config`"),
        ("{ imports = [ ./other.nix ]; }", "imports: is of the NixOS module system"),
        ('{ hyperhive.model = { _type = "if"; condition = true; content = "opus"; }; }', "lib.mkIf"),
        ("{ secret }: { }", "asks for the argument secret"),
        ("[ ]", "agent.nix: is a list"),
        ("5", "agent.nix: is a int"),
        ('{ config.hyperhive.model = "opus"; }', "config: is of the NixOS module system"),
    ],
)  # fmt: skip
async def test_what_needs_nixpkgs_is_told_so(private: PrivateNix, text: str, what: str) -> None:
    assert what in await refusal(private, text)


async def test_unused_module_arguments_are_fine(private: PrivateNix) -> None:
    found = await private.effect().evaluate(
        tree(private, '{ lib, pkgs, config, ... }: { hyperhive.model = "opus"; }')
    )
    assert found.spec.model == "opus"


async def test_files_of_its_own_tree_may_be_used(private: PrivateNix) -> None:
    folder = tree(private, "{ ... }: { hyperhive = import ./more.nix // { prompt = ./prompt.md; }; }")
    (folder / "more.nix").write_text('{ model = "opus"; }')
    (folder / "prompt.md").write_text("hello")
    found = await private.effect().evaluate(folder)
    assert (found.spec.model, found.spec.prompt) == ("opus", "prompt.md")


@pytest.mark.parametrize("prompt", ['"../x"', '"/etc/passwd"', '"absent.md"', "/etc/passwd", "../x", "5"])
async def test_a_prompt_is_a_file_of_the_tree(private: PrivateNix, prompt: str) -> None:
    assert "hyperhive.prompt" in await refusal(private, f"{{ hyperhive.prompt = {prompt}; }}")


async def test_a_sandbox_that_cannot_be_made_is_nobodys_fault(private: PrivateNix) -> None:
    folder = tree(private, "{ }")
    closed = private.path / uuid.uuid4().hex
    closed.mkdir()
    folder = folder.rename(closed / "tree")
    closed.chmod(0o700)
    with pytest.raises(TemporaryError, match="sandbox could not be made"):
        await private.effect().evaluate(folder)


async def test_a_tree_that_the_build_user_cannot_read_is_not_the_agents_fault(private: PrivateNix) -> None:
    for path, mode in (("", 0o700), ("agent.nix", 0o600)):
        folder = tree(private, "{ }")
        (folder / path).chmod(mode)
        with pytest.raises(PermanentError, match="cannot be read by"):
            await private.effect().evaluate(folder)
