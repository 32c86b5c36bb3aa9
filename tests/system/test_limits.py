"""Limits of containers where the kernel keeps them: in a virtual machine with control groups of its own."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from checks.bed import vm
from checks.bed.images import SUITES, Suite

# A run takes half a minute, so the second release is for `make test-full`.
_SUITES = SUITES if os.environ.get("HYPOTHESIS_PROFILE") == "full" else SUITES[:1]
_LIMIT_BYTES, _LIMIT_TASKS = 64 << 20, 32
pytestmark = pytest.mark.timeout(660)  # beside others, emulation takes many times what it takes alone


@pytest.fixture(scope="module", params=_SUITES)
def told(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What `inside/limits.py` tells of three containers; one run for all tests."""
    suite: Suite = request.param
    done = vm.run(vm.ensure(suite), ".venv/bin/python -m tests.system.inside.limits")
    assert done.status == 0, done.stdout
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_container_that_outgrows_its_memory_ends_as_out_of_memory(told: dict[str, dict[str, Any]]) -> None:
    status = told["eat"]["status"]
    assert (status["phase"], status["oom"], status["result"]) == ("exited", True, "oom-kill")
    assert status["exit_code"] != 0
    assert not status["stop_asked"]
    assert told["eat"]["lines"][0] == "begins eat"


def test_a_process_inside_that_outgrows_it_dies_alone(told: dict[str, dict[str, Any]]) -> None:
    status, kernel = told["child-eats"]["status"], told["child-eats"]["kernel"]
    assert (status["phase"], status["oom"]) == ("running", False)
    assert "child ended by -9" in told["child-eats"]["lines"]
    assert int(kernel["memory.max"]) == _LIMIT_BYTES
    assert "oom_kill 1\n" in kernel["memory.events"]


def test_forks_beyond_the_limit_of_tasks_are_refused(told: dict[str, dict[str, Any]]) -> None:
    kernel = told["fork"]["kernel"]
    assert int(kernel["pids.max"]) == _LIMIT_TASKS
    assert int(kernel["pids.current"]) == _LIMIT_TASKS
    # nspawn and the container's first process are two of them. The limit per user alone would refuse later.
    assert f"refused after {_LIMIT_TASKS - 2} EAGAIN" in told["fork"]["lines"]
    assert told["fork"]["status"]["phase"] == "running"


def test_such_a_host_says_that_all_limits_are_enforced(told: dict[str, dict[str, Any]]) -> None:
    for mode in ("eat", "child-eats", "fork"):
        assert told[mode]["status"]["limits_enforced"] == ["cpu", "memory", "tasks"]
