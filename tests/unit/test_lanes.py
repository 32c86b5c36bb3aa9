"""How `make test` shares the tests out, runs the parts and sums up."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest

from checks import lanes, summary
from checks.lanes import LANES, Run, Test

TESTS = """
import os
from pathlib import Path
import pytest

def test_goes_well(record_property):
    record_property("figure", "7 of 9")

def test_fails_once():
    mark = Path(__file__).with_name("mark")
    failed_before = mark.exists()
    mark.touch()
    assert failed_before

@pytest.fixture
def broken():
    raise OSError("no such thing")

def test_cannot_begin(broken):
    pass

@pytest.mark.skip(reason="HIVE_NIXPKGS_LIB is not set")
def test_is_left_out():
    pass

def test_says_nothing_of_where_to_report():
    assert "HIVE_TEST_REPORT" not in os.environ
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for tests of the test's own, with what `tests/conftest.py` tells the runner."""
    monkeypatch.setattr(lanes, "RESULTS", tmp_path / "results")
    (tmp_path / "conftest.py").write_text(
        "from tests.support.report import pytest_configure, pytest_sessionfinish\n"
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take most of the time of so small a run
    return tmp_path


def run_of(place: Path, text: str, *arguments: str) -> Run:
    file = place / "test_it.py"
    file.write_text(text)
    # As with ours: a folder with a conftest of its own, whose hooks the tests beside it do not get.
    (place / "within").mkdir()
    (place / "within/conftest.py").write_text("def pytest_runtest_logreport(report): pass\n")
    arguments = (f"--rootdir={place}", *arguments, "within", file.name)
    return Run("a lane", "a-lane", list(arguments), folder=place).to_its_end()


def test_every_file_of_tests_runs_in_exactly_one_lane() -> None:
    files = lanes.test_files()
    shared = lanes.shared_out(files)
    assert sorted(file for share in shared.values() for file in share) == files
    assert str(Path(__file__).relative_to(Path(__file__).parents[2])) in shared[LANES[-1].title]
    assert sorted(argument for run in lanes.runs() for argument in run.arguments) == files


@pytest.mark.parametrize("pattern", [pattern for lane in LANES for pattern in lane.patterns])
def test_no_pattern_of_a_lane_is_a_leftover(pattern: str) -> None:
    assert any(fnmatch.fnmatchcase(file.removesuffix(".py"), pattern) for file in lanes.test_files())


def test_a_file_of_a_new_folder_is_not_forgotten() -> None:
    assert lanes.shared_out(["tests/new/test_x.py"])[LANES[-1].title] == ["tests/new/test_x.py"]
    assert lanes.shared_out(["tests/system/test_x.py"])["throw-away hosts"] == ["tests/system/test_x.py"]
    with pytest.raises(ValueError, match=r"tests/new/test_x\.py is in no lane"):
        lanes.shared_out(["tests/new/test_x.py"], LANES[:-1])


def test_each_test_is_told_with_its_outcome_and_a_failure_counts(place: Path) -> None:
    run = run_of(place, TESTS)
    assert {(test.id.split("::")[1], test.outcome) for test in run.tests()} == {
        ("test_goes_well", "passed"),
        ("test_fails_once", "failed"),
        ("test_cannot_begin", "error"),
        ("test_is_left_out", "skipped"),
        ("test_says_nothing_of_where_to_report", "passed"),
    }
    assert run.status == 1
    assert run.cpu_s > 0.1
    text = "\n".join(summary.lines(summary.Outcome({"ruff": "ok"}, [run], 61, 9, {run.slug: run.tests()})))
    assert "  ruff                         ok" in text
    assert [line.split() for line in text.splitlines() if line.startswith("  together")] == [
        ["together", "2", "2", "1", "1:01", "9", "s"]
    ]
    assert "test_it.py: 7 of 9" in text
    assert "test_it.py::test_is_left_out: HIVE_NIXPKGS_LIB is not set" in text
    assert text.partition("\nfailed\n")[2].split() == [
        "test_it.py::test_fails_once",
        "test_it.py::test_cannot_begin",
    ]
    run.once_more()
    assert not run.is_well
    assert run.again == ("test_it.py::test_cannot_begin", "test_it.py::test_fails_once")


def test_what_fails_once_is_named_though_the_run_is_well(place: Path) -> None:
    run = run_of(place, TESTS, "--deselect", "test_it.py::test_cannot_begin")
    assert run.status == 1
    run.once_more()
    assert run.is_well
    text = "\n".join(summary.lines(summary.Outcome({}, [run], 1, 1, {run.slug: run.tests()})))
    assert "\npassed only when run again\n  test_it.py::test_fails_once" in text
    assert "test_it.py::test_cannot_begin: deselected" in text
    assert "\nfailed\n" not in text


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("import os\n\ndef test_x(): os._exit(3)\n", 3),
        ("import nothing_such\n", 2),
        ("", 5),
        ("import pytest\n\ndef test_x(): pytest.skip('no such tool')\n", 1),
    ],
    ids=["dies", "cannot be read", "is empty", "leaves out what it must not"],
)
def test_a_lane_that_does_not_run_its_tests_fails(place: Path, text: str, status: int) -> None:
    run = run_of(place, text)
    assert run.status == status
    run.once_more()
    assert not run.is_well


def test_the_slowest_are_named_first() -> None:
    run = Run("a lane", "a-lane", [])
    tests = [Test(f"tests/unit/test_x.py::test_{number}", "passed", float(number)) for number in range(12)]
    text = "\n".join(summary.lines(summary.Outcome({}, [run], 1, 1, {run.slug: tests})))
    named = [line.split()[-1] for line in text.partition("\nslowest\n")[2].splitlines()]
    assert named == [f"tests/unit/test_x.py::test_{number}" for number in range(11, 1, -1)]
