"""The profile of a training step: every part is there, once, and leaves no trace."""

from __future__ import annotations

import itertools

import numba
import numpy as np
import pytest
from click.testing import CliRunner

from bench.ceilings import GFLOPS, Ceiling
from bench.cli import main
from bench.profile_training import (
    WARM_STEPS,
    first_steps,
    problems,
    profile,
    profile_problem,
    random_trainer,
    threads,
)
from bench.timing import lapped
from impls.nn.network import Network
from impls.specs import SpecError
from reports.formats import MISSING
from reports.network_tables import profile_table

TEXT = "6x6x1->C(3,2,r);M(2);DR(0.25);F();D(3,sm)"


def ticking():
    """A clock that goes on by one second at every look."""
    return itertools.count().__next__


def test_a_lapped_call_is_the_same_call_and_says_how_long_it_took():
    laps: list[float] = []
    assert lapped(lambda a, *, b: a - b, laps, ticking())(5, b=2) == 3
    assert laps == [1]


def test_every_layer_and_direction_is_timed_and_what_is_around_them():
    """In the order of a step. By a clock of one second a look, a part takes 1, and the step a look for each end."""
    found = profile(random_trainer(Network(TEXT), 4), 4, steps=3, clock=ticking())
    parts = [(lap.layer, lap.direction) for lap in found.laps]
    layers = [
        *((name, "forward") for name in ("c0", "m1", "dr2", "d4")),
        *(("d4", direction) for direction in ("grad_weights", "grad_input")),
        *(("dr2", "grad_input"), ("c0", "activation"), ("m1", "grad_input"), ("c0", "grad_weights")),
    ]
    assert parts == [*layers, ("", "batch"), ("", "loss"), ("", "update")]
    assert {lap.seconds for lap in found.laps} == {1}
    assert found.step_s == 2 * len(parts) + 1
    assert found.overhead == pytest.approx(1 - (len(layers) - 1) / found.step_s)


def test_a_problem_of_the_registry_has_a_rate_and_an_implementation():
    found = profile(random_trainer(Network(TEXT), 4), 4, steps=1, clock=ticking())
    forward = next(lap for lap in found.laps if lap.layer == "d4")
    assert (forward.problem, forward.implementation) == ("dense:4x18,u3", "numba_jit")
    assert forward.gflops == pytest.approx(2 * 4 * 18 * 3 / 1e9)
    assert next(lap for lap in found.laps if lap.layer == "dr2").gflops is None


def test_parts_are_held_against_a_ceiling_where_there_is_one():
    found = profile(random_trainer(Network(TEXT), 4), 4, steps=1, clock=ticking())
    limit = Ceiling("multiply-add", GFLOPS, (2 * found.laps[0].gflops,))
    without, with_ceiling = (profile_table(found, limits) for limits in ((), (limit,)))
    assert "of peak" not in without.headings
    shares = [line.cells[with_ceiling.headings.index("of peak")] for line in with_ceiling.sections[0].lines]
    assert (shares[0], shares[2], shares[-1]) == ("50%", MISSING, "")


def test_a_profiled_trainer_goes_on_as_if_nothing_had_been():
    """The same calls as before, and as many steps as were taken."""
    trainer = random_trainer(Network(TEXT), 4)
    bound = trainer.pass_for(4)
    before = bound.forward_operations, bound.backward_operations, set(vars(trainer))
    profile(trainer, 4, steps=2)
    assert (bound.forward_operations, bound.backward_operations, set(vars(trainer))) == before
    assert trainer.steps == WARM_STEPS + 2
    assert np.isfinite(trainer.network.weights).all()


def test_a_network_is_named_as_in_a_contest_or_says_the_shape_of_its_images():
    (published,) = problems(["cifar10:3"])
    text = "C(3,32,r);M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);"
    assert (published.name, str(published.structure)) == ("cifar10:3", text)
    assert (published.image_shape, published.batch) == ((32, 32, 3), 1000)
    assert len(problems(["olivetti", "mnist:1"])) == 12
    (own,) = problems([], structure=TEXT)
    assert (own.name, own.image_shape, own.batch) == ("network", (6, 6, 1), 32)
    (digits,) = problems([], structure="F();D(10,sm);")
    assert (digits.name, digits.image_shape) == ("digits", (8, 8, 1))


def test_whoever_is_asked_for_computes_what_it_can():
    (problem,) = problems([], structure=TEXT)
    found = profile_problem(problem, "numpy_gemm", steps=1)
    assert {lap.implementation for lap in found.laps if lap.layer == "c0" and lap.is_layer} == {"numpy_gemm"}
    with pytest.raises(SpecError, match="unknown implementation 'nonsense'"):
        profile_problem(problem, "nonsense")


def test_thread_pools_have_the_size_that_was_asked_for_and_then_their_own_again():
    before = numba.get_num_threads()
    with threads(1):
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before
    with pytest.raises(SpecError, match="100000 threads are more than the"), threads(100000):
        pass


def test_the_first_step_is_timed_with_an_empty_cache_and_a_filled_one():
    """In processes of their own; compiling takes longer than reading what was compiled."""
    cold, warm = first_steps("F();D(2,sm)", (2, 2, 1), 2)
    assert cold > warm > 0


def train(*words):
    return CliRunner().invoke(main, ["train", "--profile", *words])


def test_the_command_prints_the_profile_and_writes_it(tmp_path):
    path, pictures = tmp_path / "profile.csv", tmp_path / "plots"
    words = ("--structure", TEXT, "--batch", "4", "--steps", "2", "--threads", "1", "--impl", "auto", "--impl", "numpy")
    result = train(*words, "--csv", str(path), "--plots", str(pictures))
    assert result.exit_code == 0, result.output
    titles = [line for line in result.stdout.splitlines() if line.startswith("Training step of")]
    assert titles == [f"Training step of network, {name}: {TEXT};" for name in ("auto", "numpy")]
    assert "dense:4x18,u3" in result.stdout
    assert "beyond the layers" in result.stdout
    heading, first, *_ = path.read_text().splitlines()
    assert heading == "network,asked_for,layer,direction,implementation,problem,seconds,gflops,share,fraction"
    assert first.startswith("network,auto,c0,forward,")
    assert sorted(file.name for file in pictures.iterdir()) == ["network-auto-profile.png", "network-numpy-profile.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "3", "--against", "none"], "--profile goes without --epochs, --against"),
        (["--experiment", "cifar10:99"], "unknown experiment 'cifar10:99'"),
        (["--experiment", "cifar10:1", "--structure", TEXT], "not both"),
        (["--dataset", "mnist"], "give --structure for mnist"),
    ],
)
def test_what_cannot_be_profiled_is_said_in_one_line(words, message):
    result = train(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_first_step_is_profiled_only():
    result = CliRunner().invoke(main, ["train", "--first"])
    assert result.exit_code == 2
    assert "--first goes with --profile" in result.output
