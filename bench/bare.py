"""The baseline: the same CLI, started per turn with `--print`, from its start to its request at the model."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.demohive import CLONE, free_port

DEADLINE_S = 30.0


def claude() -> Path:
    """The bundled CLI of the harness's environment."""
    return next((CLONE / ".venv-harness").glob("lib/python3*/site-packages/claude_agent_sdk/_bundled/claude"))


def measure(samples: int) -> list[float]:
    """Milliseconds of each run."""
    with tempfile.TemporaryDirectory(prefix="bench-bare-") as name:
        folder = Path(name)
        log, port = folder / "requests.jsonl", free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "reconciler.scripted", "--port", str(port), "--scenarios",
             str(CLONE / "reconciler/scripted/scenarios"), "--log", str(log)],
            cwd=CLONE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _await_file(log)
            return [_one(folder, port, log) for _ in range(samples)]
        finally:
            server.terminate()
            server.wait(10)


def _await_file(path: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"the scripted model did not make {path}")
        time.sleep(0.02)


def _one(folder: Path, port: int, log: Path) -> float:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "ANTHROPIC_API_KEY": "dummy",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    command = [str(claude()), "--print", "--model", "haiku", "--tools", "", "--strict-mcp-config",
               "--setting-sources", "", "hello"]  # fmt: skip
    before = len(log.read_text().splitlines())
    started = time.time()
    subprocess.run(
        command,
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=DEADLINE_S,
        check=True,
        umask=0o022,
    )
    lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    first = next(entry for entry in lines if entry["path"] == "/v1/messages")
    return float((first["at"] - started) * 1000)
