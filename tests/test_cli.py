"""The command line answers at once, reads what it is given, and says in one line what is wrong."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from bench.cli import main

RUN = CliRunner()


def invoke(*words):
    return RUN.invoke(main, words)


def test_every_command_has_help():
    for words in ((), ("list",), ("verify",), ("run",), ("report",), ("datasets",), ("datasets", "verify")):
        result = invoke(*words, "--help")
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 3


@pytest.mark.parametrize(
    ("words", "forbidden"),
    [
        (["--help"], ["numba", "tensorflow", "keras", "numpy", "pandas", "torch"]),
        (["list"], ["tensorflow", "keras", "torch", "pandas", "matplotlib"]),
        (["datasets", "list"], ["tensorflow", "numba", "torch", "sklearn"]),
    ],
)
def test_a_command_imports_only_what_it_needs(words, forbidden):
    program = (
        "import sys\nfrom bench.cli import main\n"
        f"main({words!r}, standalone_mode=False)\n"
        f"found = [name for name in {forbidden!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--suite", "nonsense"], "no suite 'nonsense': give one of quick"),
        (["run", "--case", "conv2d:1x2"], "must start with batchxheightxwidthxchannels"),
        (["run", "--case", "dense:1x2,u3", "--suite", "quick"], "not both"),
        (["run", "--op", "conv3d"], "unknown operation 'conv3d'; known: conv2d"),
        (["verify", "--impl", "nonsense"], "unknown implementation 'nonsense'; known: "),
        (["run", "--budget", "0"], "must be above 0 seconds"),
        (["report", "--db", "nowhere.sqlite"], "there is no store nowhere.sqlite; make one with: layerbench run"),
        (["verify", "--model", "cats"], "no reference model for 'cats'"),
        (["datasets", "fetch", "cats"], "unknown data set 'cats'; known: digits"),
        (["list", "--op", "conv3d"], "unknown operation 'conv3d'"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_exit_status_2(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_data_set_that_cannot_be_had_is_one_sentence_and_exit_status_1(monkeypatch):
    import datasets

    def unreachable(name):
        raise datasets.DatasetError(f"{name} is not here")

    monkeypatch.setattr(datasets, "fetch", unreachable)
    result = invoke("datasets", "fetch", "mnist")
    assert result.exit_code == 1
    assert result.output == "layerbench: mnist is not here\n"
