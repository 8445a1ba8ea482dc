"""What pytest runs: tests by default, benchmarks with --benchmark-only; and what must not be skipped where."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent

REQUIRED = {
    "LAYERBENCH_REQUIRE_DATA": ("LAYERBENCH_DATA",),
    "LAYERBENCH_REQUIRE_CUDA": ("CUDA device", "NVIDIA driver", "CuPy"),
}
"""A variable that is set, and words in the reason of a skip, any of which makes it a failure then."""


def pytest_addoption(parser):
    """Choose what is benchmarked."""
    group = parser.getgroup("layerbench")
    group.addoption("--suite", default="quick", help="suite to benchmark, or --suite=FILE of cases (default: quick)")
    group.addoption("--impl", action="append", default=[], help="benchmark only this implementation; may be repeated")


def pytest_ignore_collect(collection_path, config):
    """Tests and benchmarks are never collected together."""
    folder = "tests" if config.getoption("--benchmark-only") else "bench"
    return True if ROOT / folder in (collection_path, *collection_path.parents) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip for want of what is required here is a failure."""
    report = yield
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found = (os.environ.get(variable) and word in reason for variable, words in REQUIRED.items() for word in words)
        if any(found):
            report.outcome = "failed"
    return report
