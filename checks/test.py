"""`make test`: linters and all tests beside each other, then one summary of what ran and what was left out.

Tests run even when a linter fails, so that one run tells everything. They run in lanes (`checks.lanes`): most
of what takes long waits for something, and one after the other left the machine idle for half of the time.
With arguments, which go to pytest, there is one lane only. Standard library only.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from checks import lint, summary
from checks.lanes import Run, at_once, runs

_TOLD_EVERY_S = 30.0


def main(arguments: list[str]) -> int:
    """Further arguments go to pytest, which then runs once. Exit status 1 when anything failed."""
    # Both end what was started; SIGINT also where a shell's `&` had it ignored, which children would inherit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    began, cpu = time.monotonic(), _cpu_s()
    if arguments:
        planned = [Run("tests", "tests", arguments, may_be_empty=True, shown=True)]
        findings = lint.run()
        planned[0].to_its_end()
    else:
        planned = runs()
        findings = _beside(planned, began)
    tests = {run.slug: run.tests() for run in planned}
    for run in planned:  # one after the other, with nothing beside them
        run.once_more()
    outcome = summary.Outcome(findings, planned, time.monotonic() - began, _cpu_s() - cpu, tests)
    print("\n".join(summary.lines(outcome)))
    failed = [name for name, became in findings.items() if became == lint.FAILED]
    failed += [run.title for run in planned if not run.is_well]
    print(f"\nFAILED: {', '.join(failed)}" if failed else "\neverything that ran is well")
    return 1 if failed else 0


def _beside(planned: list[Run], began: float) -> dict[str, str]:
    """Linters and runs, as many at once as this machine carries; what the linters found."""
    with ThreadPoolExecutor(at_once()) as pool:
        linting = pool.submit(lint.run)
        waiting: set[Future[Run]] = {pool.submit(run.to_its_end) for run in planned}
        try:
            while waiting:
                done, waiting = wait(waiting, _TOLD_EVERY_S, FIRST_COMPLETED)
                for future in done:
                    _tell_end(future.result(), began)
                if not done:
                    _tell_progress(planned, began)
            return linting.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for run in planned:
                run.stop()
            raise


def _tell_end(run: Run, began: float) -> None:
    """One line, and everything pytest said if it did not go well."""
    said = "ok" if run.is_well else f"FAILED (pytest ended with {run.status})"
    took = f"{len(run.tests())} tests in {summary.clock(run.wall_s)}"
    print(f"{summary.clock(time.monotonic() - began):>6}  {run.title}: {said}, {took}", flush=True)
    if not run.is_well:
        print(run.output.read_text(errors="replace"), flush=True)


def _tell_progress(planned: list[Run], began: float) -> None:
    tests = [test for run in planned for test in run.tests()]
    failed = sum(test.outcome in {"failed", "error"} for test in tests)
    at_work = [
        f"{run.title} {len(run.tests())}"
        for run in planned
        if run.process is not None and run.process.returncode is None
    ]
    now = summary.clock(time.monotonic() - began)
    print(
        f"{now:>6}  {len(tests)} tests are over, {failed} failed; at work: {', '.join(at_work)}", flush=True
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
