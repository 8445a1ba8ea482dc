"""The profile of a training step: every part is there, once, and leaves no trace."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from click.testing import CliRunner

from bench.cli import main
from bench.profile_training import WARM_STEPS, first_steps, problem_of, profile, random_trainer
from bench.timing import lapped
from impls.nn.network import Network
from impls.specs import SpecError

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
        *(("dr2", "grad_input"), ("m1", "grad_input"), ("c0", "activation"), ("c0", "grad_weights")),
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


def test_a_profiled_trainer_goes_on_as_if_nothing_had_been():
    """The same calls as before, and as many steps as were taken."""
    trainer = random_trainer(Network(TEXT), 4)
    bound = trainer.pass_for(4)
    before = bound.forward_operations, bound.backward_operations, set(vars(trainer))
    profile(trainer, 4, steps=2)
    assert (bound.forward_operations, bound.backward_operations, set(vars(trainer))) == before
    assert trainer.steps == WARM_STEPS + 2
    assert np.isfinite(trainer.network.weights).all()


def test_a_network_is_named_by_its_experiment_or_its_text():
    layers, shape, batch = problem_of("cifar10:3", None)
    assert (str(layers), shape, batch) == (
        "C(3,32,r);M(2);DR(0.125);F();D(128,r);DR(0.125);D(10,sm);",
        (32, 32, 3),
        1000,
    )
    assert problem_of(None, TEXT)[1:] == ((6, 6, 1), 32)
    with pytest.raises(SpecError, match="no published network 'cifar10:99'; known: olivetti:1"):
        problem_of("cifar10:99", None)
    with pytest.raises(SpecError, match="does not say the shape of its images; begin it as in 32x32x3->"):
        problem_of(None, "F();D(3)")


def test_the_first_step_is_timed_with_an_empty_cache_and_a_filled_one():
    """In processes of their own; compiling takes longer than reading what was compiled."""
    cold, warm = first_steps("F();D(2,sm)", (2, 2, 1), 2)
    assert cold > warm > 0


def test_the_command_prints_the_profile_and_writes_it(tmp_path):
    path = tmp_path / "profile.csv"
    options = ["--structure", TEXT, "--batch", "4", "--steps", "2", "--csv", str(path)]
    result = CliRunner().invoke(main, ["profile-network", *options])
    assert result.exit_code == 0
    assert "dense:4x18,u3" in result.stdout
    assert "beyond the layers" in result.stdout
    assert path.read_text().startswith("layer,direction,implementation,problem,seconds,gflops,share\nc0,forward,")


def test_the_command_wants_one_network():
    result = CliRunner().invoke(main, ["profile-network"])
    assert result.exit_code == 2
    assert "give --experiment or --structure" in result.output
