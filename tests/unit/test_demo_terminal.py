"""Steps of the installer: what a program's failure, silence and interruption look like."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from reconciler.demo import terminal
from reconciler.errors import PermanentError

ENV = {"PATH": os.environ["PATH"]}


def run(script: str, *, deadline_s: float = 20, finish: bool = False) -> None:
    with terminal.step("a step") as at:
        terminal.run(
            at, [sys.executable, "-c", script], env=ENV, cwd="/", deadline_s=deadline_s, finish=finish
        )


def test_a_failure_shows_the_last_lines_of_the_program() -> None:
    with pytest.raises(PermanentError, match="exited with 3") as caught:
        run("import sys; [print('line', n) for n in range(50)]; sys.exit(3)")
    lines = caught.value.hint.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("line 30", "line 49", 20)


def test_a_program_that_outlives_its_deadline_is_ended() -> None:
    with pytest.raises(PermanentError, match="still running after 0 s"):
        run("import time; time.sleep(1000)", deadline_s=0.3)


@pytest.mark.parametrize(("finish", "is_done"), [(False, False), (True, True)])
def test_an_interruption_ends_the_program_or_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: bool, is_done: bool
) -> None:
    done = tmp_path / "done"
    script = (
        "import time, pathlib\n"
        "print('at work', flush=True)\n"
        f"time.sleep({0.5 if finish else 60})\n"
        f"pathlib.Path({str(done)!r}).touch()\n"
    )

    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def tick(_: terminal.Step, detail: str = "") -> None:
        if detail == "at work":  # it is followed by now
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(terminal.Step, "tick", tick)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            run(script, finish=finish)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done.exists() is is_done


def test_without_a_terminal_a_step_is_one_line_and_says_that_it_lives(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = terminal.Step("work", started=0.0, _noticed=0.0)
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for now in range(1, 26):  # noqa: B007 - the clock reads it
        running.tick("detail")
    running.end("done")
    label = "  work" + " " * 23
    assert capsys.readouterr().out == f"{label}… 10 s\n{label}… 20 s\n{label}done  (25.0 s)\n"


def test_hostile_output_of_a_tool_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_is_terminal", lambda: True)
    with terminal.step("work") as at:
        at.tick("\x1b]0;title\x07text")
    assert "\x1b]" not in capsys.readouterr().out
