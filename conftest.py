"""What pytest runs: tests by default, benchmarks with --benchmark-only; and the options of the benchmarks."""

from pathlib import Path

ROOT = Path(__file__).parent


def pytest_addoption(parser):
    """Choose what is benchmarked."""
    group = parser.getgroup("layerbench")
    group.addoption("--suite", default="quick", help="suite to benchmark, or --suite=FILE of cases (default: quick)")
    group.addoption("--impl", action="append", default=[], help="benchmark only this implementation; may be repeated")


def pytest_ignore_collect(collection_path, config):
    """Tests and benchmarks are never collected together."""
    folder = "tests" if config.getoption("--benchmark-only") else "bench"
    return True if ROOT / folder in (collection_path, *collection_path.parents) else None
