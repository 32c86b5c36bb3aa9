"""hived as a process under a supervisor: what it says, whom a restart refuses, how long a stop takes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reconciler.cli.api import Hive
from reconciler.cli.failure import Failure
from reconciler.control.client import ControlClient
from reconciler.errors import HiveError
from reconciler.sockets import inherited
from tests.fakes.unixhttp import until
from tests.support.hivedprocess import CLONE, supervised
from tests.support.needs import needs_root

pytestmark = [
    pytest.mark.asyncio,
    needs_root,
]


async def test_it_says_what_it_does_and_that_it_is_ready_only_when_it_answers(tmp_path: Path) -> None:
    async with supervised(tmp_path, watchdog_s=0.3) as hive:
        await hive.start()
        began = hive.heard[: hive.heard.index("READY=1")]
        assert began[0].startswith("STATUS=opening the databases")
        assert any(one.startswith("EXTEND_TIMEOUT_USEC=") for one in began)
        assert any(one.startswith("STATUS=first read") for one in began)
        async with ControlClient(hive.run / "control.sock") as client:
            assert (await client.status()).agents is not None
        await hive.told("STATUS=serving 0 agents")
        await hive.told("WATCHDOG=1")
        hive.heard.clear()
        assert await hive.stop() < 5
        hive.listen()
        assert "STOPPING=1" in hive.heard
        assert "WATCHDOG=1" not in hive.heard[hive.heard.index("STOPPING=1") + 2 :]


async def test_a_stopped_event_loop_feeds_no_watchdog(tmp_path: Path) -> None:
    async with supervised(tmp_path, watchdog_s=0.3) as hive:
        await hive.start()
        await hive.told("WATCHDOG=1")
        assert hive.process is not None
        hive.process.send_signal(signal.SIGSTOP)
        await until(lambda: "T" in Path(f"/proc/{hive.process.pid}/stat").read_text().split()[2])  # type: ignore[union-attr]
        hive.listen()
        with pytest.raises(AssertionError, match="did not say WATCHDOG"):
            await hive.told("WATCHDOG=1", within_s=1)
        hive.process.send_signal(signal.SIGCONT)
        await hive.told("WATCHDOG=1")


class Hammer:
    """Calls without a pause from several threads, each over a connection of its own."""

    def __init__(self, path: Path, threads: int = 4) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self.longest_s = 0.0
        self._hive = Hive(str(path))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._hive.get("/status")
                self.answers += 1
            except Failure as failure:
                self.failures.append(failure.message)
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    async def more(self, count: int) -> None:
        """Until so many more have been answered."""
        wanted = self.answers + count
        async with asyncio.timeout(30):
            while self.answers < wanted:  # noqa: ASYNC110 - other threads do the work
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 30)


async def test_restarts_under_a_hammering_client_refuse_nobody(tmp_path: Path) -> None:
    async with supervised(tmp_path) as hive:
        await hive.start()
        hammer = Hammer(hive.run / "control.sock")
        try:
            for _ in range(2):
                await hammer.more(20)
                await hive.stop()
                await hive.start()
            await hammer.more(20)
        finally:
            await hammer.end()
        assert hammer.failures == []
        assert hammer.answers >= 60
        assert hammer.longest_s < 15, "calls wait no longer than a client does"


async def test_a_kill_under_a_hammering_client_refuses_nobody_new(tmp_path: Path) -> None:
    async with supervised(tmp_path) as hive:
        await hive.start()
        assert hive.process is not None
        hive.process.kill()
        await hive.process.wait()
        waiting = asyncio.create_task(asyncio.to_thread(Hive(str(hive.run / "control.sock")).get, "/status"))
        await until(hive.somebody_waits)
        assert not waiting.done()
        await hive.start()
        assert (await waiting)["agents"] == 0


async def test_without_a_supervisors_sockets_it_makes_its_own_and_takes_them_away(tmp_path: Path) -> None:
    async with supervised(tmp_path, activated=False) as hive:
        await hive.start()
        async with ControlClient(hive.run / "control.sock") as client:
            await client.status()
        await hive.stop()
        assert not (hive.run / "control.sock").exists()


async def test_a_stop_under_open_streams_and_slow_clients_takes_less_than_five_seconds(
    tmp_path: Path,
) -> None:
    async with supervised(tmp_path) as hive:
        await hive.start()
        path = hive.run / "control.sock"
        async with ControlClient(path) as client, contextlib.AsyncExitStack() as stack:
            opened: list[None] = []
            streams = [client.stream(on_open=lambda: opened.append(None)) for _ in range(20)]
            reading = [asyncio.create_task(anext(stream, None)) for stream in streams]
            await until(lambda: len(opened) == 20)
            for _ in range(20):  # connected, silent
                silent = stack.enter_context(socket.socket(socket.AF_UNIX))
                silent.connect(str(path))
            half = stack.enter_context(socket.socket(socket.AF_UNIX))
            half.connect(str(path))
            half.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: hive\r\nContent-Length: 1000\r\n\r\n{")
            assert await hive.stop() < 5
            ended = await asyncio.gather(*reading, return_exceptions=True)
            assert all(end is None or isinstance(end, HiveError) for end in ended)
            for stream in streams:
                await stream.aclose()
        assert "did not stop within" not in hive.log()


async def test_what_hangs_at_the_stop_does_not_keep_the_process(tmp_path: Path) -> None:
    program = tmp_path / "hanging.py"
    program.write_text(
        "import asyncio, sys, time\n"
        "from reconciler import app\n"
        "async def hang(self): time.sleep(600)\n"
        "app.AgentServers.close = hang\n"
        "from reconciler.__main__ import main\n"
        "sys.exit(main())\n"
    )
    async with supervised(tmp_path) as hive:
        await hive.start(argv=(str(program),))
        assert await hive.stop() < 5
        assert "did not stop within" in hive.log()


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def _told_by_a_child(folder: Path, *names: str, pid: str = "$$") -> str:
    """What `inherited` finds in a process that got these files' sockets, and a pipe as the last one."""
    sockets = []
    for name in names:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(folder / name))
        sock.listen()
        sockets.append(sock)
    pipe, other = os.pipe()
    passed = [*(sock.fileno() for sock in sockets), pipe]
    moves = " ".join(f"{number}<&{fd}" for number, fd in enumerate(passed, 3))
    program = (
        "import os; from reconciler.sockets import inherited; found = inherited(os.environ); "
        "print(sorted((n, b.path.name, b.is_in_place(), os.get_inheritable(b.sock.fileno())) "
        "for n, b in found.items()), 'LISTEN_FDS' in os.environ)"
    )
    ran = subprocess.run(
        ["/bin/bash", "-c", f'exec {moves}; export LISTEN_PID={pid}; exec "$@"', "sh",
         sys.executable, "-c", program],
        env={"PYTHONPATH": str(CLONE), "LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": "a:b:pipe"},
        pass_fds=passed, capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    for sock in sockets:
        sock.close()
    os.close(pipe)
    os.close(other)
    return ran.stdout.splitlines()[-1]


async def test_inherited_sockets_are_taken_by_name_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    expected = "[('a', 'one', True, False), ('b', 'two', True, False)] False"
    assert _told_by_a_child(tmp_path, "one", "two") == expected


async def test_sockets_that_are_meant_for_another_process_are_not_taken(tmp_path: Path) -> None:
    assert _told_by_a_child(tmp_path, "one", "two", pid="1") == "[] False"


async def test_inherited_takes_its_variables_also_when_there_is_nothing(tmp_path: Path) -> None:
    environment = {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "a", "PATH": "/bin"}
    assert inherited(environment) == {}
    assert environment == {"PATH": "/bin"}


async def test_systemds_own_socket_activation_starts_it_with_the_first_connection(tmp_path: Path) -> None:
    activate = shutil.which("systemd-socket-activate")
    assert activate is not None
    async with supervised(tmp_path, activated=False) as hive:
        path = hive.run / "control.sock"
        process = await asyncio.create_subprocess_exec(
            activate, f"--listen={path}", "--fdname=control.sock", f"--setenv=PYTHONPATH={CLONE}",
            f"--setenv=HIVE_CONFIG={tmp_path}/config.json", sys.executable, "-m", "reconciler",
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await until(lambda: _somebody_listens(path))
            async with ControlClient(path) as client:
                assert (await client.agents()).items == []
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(6):
                assert await process.wait() == 0
            assert path.exists(), "a socket that was inherited is not ours to remove"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
