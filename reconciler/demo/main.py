"""`make demo` and `make demo-reset`: looks, installs, starts the world, and stays until Ctrl-C.

Nothing is changed before every check has passed. All that runs is in the world; ending it ends everything.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconciler.demo import checks, control, install, launch, place, seed, services, terminal
from reconciler.demo.launch import Happening, World
from reconciler.demo.place import Place
from reconciler.demo.services import Credential
from reconciler.demo.world import Plan
from reconciler.errors import HiveError, OperatorError, PermanentError, TemporaryError

_READY_S = 60.0
_TICK_S = 0.05
_PROXY_NAMES = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE")
_LOG_TAIL_BYTES = 3000


@dataclass(frozen=True, slots=True)
class Options:
    """What the person asked for, by arguments and environment."""

    place: Place
    port: int
    token_file: str | None
    reset: bool


class _Stopped(Exception):  # noqa: N818 - no error: somebody asked us to end
    """SIGINT, SIGTERM or SIGHUP arrived."""


def main(arguments: list[str]) -> int:
    """Exit status 0 when it ran and was stopped, 1 when something was in the way."""
    world: World | None = None
    try:
        options = _options(arguments)
        if options.reset:
            return _reset(options.place)
        with _signals():
            plan = _prepare(options)
            handle = options.place.lock()
            try:
                world = _start(plan, handle)
            finally:
                os.close(handle)  # from here on the world itself holds the lock
            _bring_up(world, options, plan)
            _watch(world)
    except _Stopped:
        terminal.say()
    except HiveError as error:
        terminal.complain(error.message, error.hint)
        return 1
    finally:
        if world is not None:
            _end(world)
    return 0


def _options(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="make demo", description="A whole hive on this machine, in a world of its own."
    )
    parser.add_argument("--reset", action="store_true", help="wipe the demo's state and end")
    parser.add_argument("--token-file", help="a file with the key for the real API (or ANTHROPIC_API_KEY)")
    parsed = parser.parse_args(arguments)
    return Options(
        place=Place.of(os.environ.get("DEMO_DIR") or str(install.CLONE / ".demo")),
        port=checks.port_of(os.environ.get("HIVE_PORT") or "7000"),
        token_file=parsed.token_file,
        reset=parsed.reset,
    )


def _reset(where: Place) -> int:
    gone = where.wipe()
    terminal.say(f"{where.root} is wiped" if gone else f"there is no {where.root}: nothing to do")
    return 0


def read_credential(token_file: str | None, environment: str) -> Credential | None:
    """The operator's key from a file or the environment; `OperatorError` if it cannot be one."""
    secret, origin = environment, "ANTHROPIC_API_KEY"
    if token_file is not None:
        origin = token_file
        try:
            secret = Path(token_file).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise OperatorError(f"the token file {token_file} cannot be read: {error}") from None
    secret = secret.strip()
    if not secret:
        if token_file is not None:
            raise OperatorError(f"the token file {token_file} is empty")
        return None
    if not secret.isascii() or not secret.isprintable() or " " in secret or len(secret) > 4096:
        raise OperatorError(f"{origin} holds no key: it has blanks or characters that no key has")
    # Keys go into x-api-key; tokens of a login (sk-ant-oat…) are bearer tokens.
    return Credential(secret, "bearer" if secret.startswith("sk-ant-oat") else "api-key")


def _prepare(options: Options) -> Plan:
    """Checks, installs, and fills the demo's folder."""
    credential = read_credential(options.token_file, os.environ.pop("ANTHROPIC_API_KEY", ""))
    terminal.say(terminal.paint("hyperhive demo", "1"))
    with terminal.step("checks") as at:
        found = checks.problems(options.place, options.port)
        if found:
            at.result = terminal.paint("failed", "31")
    if found:
        for problem in found:
            terminal.complain(problem.what, problem.remedy)
        raise OperatorError("nothing was changed", hint="mend the above and run it again")
    install.install()
    where = options.place
    with terminal.step("demo's folder") as at:
        where.make()
        changed = place.sync_source(install.CLONE, where)
        place.write_shell_files(where)
        if changed:
            _compile(where, at)
        at.result = f"{where.root}" + (f", {changed} files of the program copied" if changed else "")
    proxies = {n: os.environ[n] for n in _PROXY_NAMES if n in os.environ}
    return Plan(
        folder=str(where.root),
        venv=str(install.CLONE / install.HOST.folder),
        harness_venv=str(install.CLONE / install.HARNESS.folder),
        port=options.port,
        credential=credential,
        proxies=proxies,
    )


def _compile(where: Place, at: terminal.Step) -> None:
    """Compiles the copy: the world sees it read-only, and compiling at every start of a program would cost
    most of its start-up time. A file that does not compile is its own error, later and where it matters."""
    python = install.CLONE / install.HOST.folder / "bin/python"
    strip = ("-s", str(where.source), "-p", services.SOURCE)
    packages = [str(where.source / name) for name in ("reconciler", "harness", "ui")]
    with contextlib.suppress(PermanentError):
        terminal.run(
            at,
            [str(python), "-m", "compileall", "-q", *strip, *packages],
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
            cwd="/",
            deadline_s=60,
        )


def _start(plan: Plan, lock: int) -> World:
    with terminal.step("world") as at:
        world = launch.start(plan, lock)
        at.result = f"its first process is {world.pid}"
    terminal.say(f"  {'stop':<26} Ctrl-C ends everything")
    terminal.say(f"  {'model':<26} {_model(plan.credential)}")
    return world


def _model(credential: Credential | None) -> str:
    if credential is None:
        return "the scripted model; with ANTHROPIC_API_KEY set, the demo speaks to the Anthropic API"
    return (
        f"the Anthropic API, with your {'token' if credential.kind == 'bearer' else 'key'}; this costs money"
    )


def _bring_up(world: World, options: Options, plan: Plan) -> None:
    """Waits for the services, makes the demo hive on the first run, and prints where it is."""
    with terminal.step("services") as at:
        _until(world, at, lambda: bool(control.get(world, "/v1/status")), "hived")
        _until(world, at, lambda: _answers(options.port), "ui")
    if not seed.is_seeded(world):
        with terminal.step("demo hive") as at:
            seed.seed(world, at.tick)
            at.result = ", ".join(name for name, _ in seed.AGENTS)
    with terminal.step("agents") as at:
        late = seed.wait_until_at_work(world, at.tick)
        said = [f"not at work yet: {', '.join(late)}; see `hive plan`"] if late else []
        said += seed.held(world)
        at.result = "; ".join(said) or "at work"
    if not late:
        seed.mark(world)
    terminal.say()
    terminal.say(f"  open      {terminal.paint(_login_link(world), '1')}")
    terminal.say(
        f"  address   http://localhost:{options.port}/ (the link above logs you in, once, for 10 minutes)"
    )
    terminal.say(f"  shell     . {_short(world.place.root / 'env')} && hive agents")
    terminal.say(f"  logs      {_short(world.place.state / 'log')}")
    terminal.say(f"  model     {_model(plan.credential)}")
    terminal.say()


def _login_link(world: World) -> str:
    printed = world.run((*seed.HIVE, "login"))
    for word in printed.split():
        if word.startswith("http://"):
            return word
    raise PermanentError("`hive login` printed no link", hint=printed)


def _until(world: World, at: terminal.Step, is_ready: Callable[[], bool], name: str) -> None:
    """Waits for a service; on the way it shows what the supervisor tells."""
    until = time.monotonic() + _READY_S
    while True:
        with contextlib.suppress(TemporaryError):
            if is_ready():
                return
        at.tick(f"waiting for {name}")
        with contextlib.suppress(queue.Empty):
            _show(world, world.happenings.get(timeout=_TICK_S))
        if time.monotonic() > until:
            log = world.place.state / "log" / f"{name}.log"
            raise PermanentError(f"{name} did not answer within {_READY_S:.0f} s", hint=_tail(log))


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _watch(world: World) -> None:
    """Shows what happens until somebody stops us, or the world ends by itself (`PermanentError`)."""
    while True:
        _show(world, world.happenings.get())


def _show(world: World, happening: Happening) -> None:
    details = happening.details
    match happening.event:
        case "ended":
            last = last_words(world.place.state / "log" / f"{happening.service}.log")
            terminal.say(
                f"  {happening.service} {details['how']}, starting it again in {details['again_in_s']} s"
                + (f": {last}" if last else "")
            )
        case "gone":
            raise PermanentError("the demo's world ended by itself", hint=str(details["stderr"]))
        case _:
            pass


def _end(world: World) -> None:
    with terminal.step("stop") as at:
        world.stop()
        at.result = "everything has ended"


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turns the signals that ask us to end into `_Stopped`, once: a second Ctrl-C does not disturb the
    end."""

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise _Stopped

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, stop)
    yield


def _tail(path: Path, limit: int = _LOG_TAIL_BYTES) -> str:
    try:
        return path.read_bytes()[-limit:].decode(errors="replace").strip()
    except OSError:
        return f"{path} is not there"


def last_words(log: Path) -> str:
    """The last line of a service's log if it may say what went wrong, "" if it is an ordinary one."""
    line = "".join(_tail(log, 400).splitlines()[-1:])
    return "" if line.endswith("}") and '"level": "info"' in line else line


def _short(path: Path) -> str:
    """A path as the person would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
