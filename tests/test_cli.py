"""The command line answers at once, reads what it is given, and says in one line what is wrong."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import __version__
from bench.cli import main
from bench.store import Store

RUN = CliRunner()


def invoke(*words):
    return RUN.invoke(main, words)


def test_every_command_has_help():
    for words in (
        (),
        ("list",),
        ("verify",),
        ("run",),
        ("report",),
        ("compare",),
        ("selftest",),
        ("datasets",),
        ("datasets", "verify"),
    ):
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
        (["run", "--memory", "warm"], "'warm' is not one of 'hot', 'cold-weights', 'cold', 'both'"),
        (["run", "--budget", "0"], "must be above 0 seconds"),
        (["run", "--budget", "nan"], "must be above 0 seconds"),
        (["run", "--call-limit", "0"], "0.0 is not in the range x>0"),
        (["verify", "--setup-limit", "-1"], "-1.0 is not in the range x>0"),
        (["run", "--precision", "0"], "'0' is not a percentage above 0, such as 5%"),
        (["report", "--db", "nowhere.sqlite"], "there is no store nowhere.sqlite; make one with: layerbench run"),
        (["report", "--op", "conv3d"], "unknown operation 'conv3d'; known: conv2d"),
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


@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_device_that_does_not_exist_lists_those_that_do(command, tmp_path, monkeypatch):
    from bench import nvml

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nvml, "listed", lambda: (nvml.Listed(0, "GPU-aa", "NVIDIA H100"),))
    result = invoke(command, "--case", "dense:4x8,u2", "--device", "1")
    assert result.exit_code == 2
    assert result.output == "layerbench: no device 1; there are: 0: NVIDIA H100 (GPU-aa)\n"
    assert not list(tmp_path.iterdir())


ROOT = Path(__file__).parent.parent
ONE = ("run", "--direction", "forward", "--impl", "numpy", "--competitor", "none", "--threads", "1", "--budget", "0.2")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals to one process")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_rows_and_goes_on(tmp_path, signal_number):
    cases = [word for units in range(1, 7) for word in ("--case", f"dense:4x8,u{units}")]
    command = [sys.executable, "-m", "bench", *ONE, *cases, "--db", str(tmp_path / "a.sqlite")]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=_listen_to_ctrl_c,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _stored(tmp_path / "a.sqlite"):
        time.sleep(0.05)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
    kept = _rows(tmp_path / "a.sqlite")
    assert process.returncode == 130
    assert f"stopped: {len(kept)} rows are kept; go on with the same command and --resume" in errors
    assert 0 < len(kept) < 6

    again = invoke(*command[3:], "--resume")
    assert again.exit_code == 0, again.output
    assert f"{len(kept)} of 6 done, {6 - len(kept)} to go" in again.output
    assert len({row.spec for row in _rows(tmp_path / "a.sqlite")}) == len(_rows(tmp_path / "a.sqlite")) == 6

    for option, message in (
        ("--seed", "its seed is 0, now it is 7"),
        ("--threads", "its threads is 1, now it is 7"),
        ("--budget", "its budget_s is 0.2, now it is 7.0"),
        ("--setup-limit", "its setup_limit_s is 180.0, now it is 7.0"),
        ("--call-limit", "its call_limit_s is 60.0, now it is 7.0"),
    ):
        refused = invoke(*command[3:], "--resume", option, "7")
        assert refused.exit_code == 2
        assert message in " ".join(refused.output.split())


def _listen_to_ctrl_c():
    """A shell starts what it puts into the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stored(path):
    """The number of rows while the program is at work, which may not have made the tables yet."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT count(*) FROM measurements").fetchone()[0]
    return 0


def _rows(path):
    store = Store(path)
    rows = [row for _, row in store.rows()]
    store.close()
    return rows


def test_a_case_given_twice_is_done_once(tmp_path):
    case = ("--case", "dense:4x8,u2")
    result = invoke(*ONE, *case, *case, "--db", str(tmp_path / "a.sqlite"))
    assert result.exit_code == 0, result.output
    assert len(_rows(tmp_path / "a.sqlite")) == 1


def test_a_run_measures_the_ceilings_that_its_rows_are_held_against(tmp_path):
    path = tmp_path / "a.sqlite"
    assert invoke(*ONE, "--case", "dense:4x8,u2", "--db", str(path)).exit_code == 0
    (row,) = _rows(path)
    store = Store(path)
    stored = store.run().machine["ceilings"]
    store.close()
    assert 0 < row.fraction < 1
    assert row.binding.partition(":")[0] in {ceiling["name"] for ceiling in stored}


def test_a_case_needs_no_operation_where_one_is_named():
    from bench.cli import _wanted

    options = {"implementations": (), "directions": ("forward",), "competitors": ("none",), "batch": None, "seed": 0}
    wanted = [
        _wanted(suite=None, cases=(case,), ops=("avgpool2d",), **options)[2]
        for case in ("2x4x4x3,pool2x2,p1:1:0:0", "avgpool2d:2x4x4x3,pool2x2,p1:1:0:0")
    ]
    assert wanted[0] == wanted[1]
    assert wanted[0][0].case.op == "avgpool2d"


def test_the_version_is_that_of_the_project():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output.strip() == __version__
