"""Perceptrons: the plain one agrees with mathematics and with the network, and the presets train as they say."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from click.testing import CliRunner

import datasets
from bench import plain_network
from bench.cli import main
from bench.contest import entrants, judged
from bench.contestant import Contestant, OurTrainee
from bench.experiments import OF_CLASSES, OF_NUMBERS, OF_TWO, Turn, from_plain, images, own, require_fit, to_plain
from bench.keras_network import KerasTrainee
from bench.plain_network import PlainTrainee
from bench.presets import MNIST, PRESETS, TITANIC, select, sweep
from bench.results import Training
from bench.store import Store
from bench.torch_network import TorchTrainee
from impls import cupy_setup
from impls.nn.network import Network, Pass
from impls.nn.optimizers import SGD, Adam, AMSGrad, described, named
from impls.nn.plain import Descent, Perceptron
from impls.nn.schedules import CosineDecay
from impls.nn.structure import parse
from impls.nn.training import Data, Settings, Trainer, sampled
from impls.specs import SpecError
from reports import preset_tables

RNG = np.random.default_rng(5)
SHAPE = (1, 1, 6)
X = RNG.standard_normal((20, *SHAPE)).astype(np.float32)
LABELS = RNG.integers(0, 3, 20)
ENDS = {
    OF_CLASSES: ("D(3,sm)", np.eye(3, dtype=np.float32)[LABELS]),
    OF_TWO: ("D(1,s)", (LABELS[:, None] > 0).astype(np.float32)),
    OF_NUMBERS: ("D(2)", RNG.standard_normal((20, 2)).astype(np.float32)),
}
ON_ALL_LOSSES = pytest.mark.parametrize("loss", ENDS)
HIDDEN = "F();D(7,r);D(5,t);D(4,s);"


def float64_network(loss):
    """A network with hidden layers of every activation, in float64."""
    return Network(parse(f"{HIDDEN}{ENDS[loss][0]};"), SHAPE, seed=1, dtype="float64")


def perceptron_of(network, loss):
    return Perceptron(network.structure, SHAPE, loss, network.named_weights(), np)


@ON_ALL_LOSSES
def test_the_plain_perceptron_s_gradients_are_those_of_finite_differences(loss):
    """Central differences in float64, at every weight."""
    plain, (x, t) = perceptron_of(float64_network(loss), loss), (X.astype(np.float64), ENDS[loss][1])
    found = plain.gradients(plain.forward(x), t)
    h = 1e-6
    for name, w in plain.weights.items():
        expected = np.empty_like(w)
        for place in np.ndindex(w.shape):
            before, values = w[place], []
            for moved in (before + h, before - h):
                w[place] = moved
                values.append(float(plain.loss_of(plain.forward(x)[-1], t)))
            w[place] = before
            expected[place] = (values[0] - values[1]) / (2 * h)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-8, err_msg=name)


@ON_ALL_LOSSES
def test_the_network_s_gradients_are_the_plain_perceptron_s(loss):
    """Both in float64; answers and loss too."""
    network = float64_network(loss)
    plain, t = perceptron_of(network, loss), ENDS[loss][1].astype(np.float64)
    values = plain.forward(X.astype(np.float64))
    trainer = Trainer(network, Data(X, t), Settings(loss=loss))
    bound = Pass(network, len(X), training=True)
    bound.x[...] = X
    bound.forward()
    assert trainer.loss_of(bound, t) == pytest.approx(float(plain.loss_of(values[-1], t)), rel=1e-12)
    bound.backward()
    np.testing.assert_allclose(bound.y, values[-1], rtol=1e-10)
    for name, expected in plain.gradients(values, t).items():
        (parameter,) = (p for p in network.parameters if p.name == name)
        np.testing.assert_allclose(parameter.of(network.gradients), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("structure", "loss", "message"),
    [
        ("F();D(4,r);DR(0.5);D(3,sm);", OF_CLASSES, r"dense layers only, not DR\(0.5\)"),
        ("F();D(1,t);", OF_TWO, "binary_crossentropy with its own activation only"),
    ],
)
def test_what_is_not_plain_is_refused(structure, loss, message):
    with pytest.raises(SpecError, match=message):
        Perceptron(parse(structure), SHAPE, loss, {}, np)


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), AMSGrad()])
def test_an_optimizer_that_is_not_plain_is_refused(optimizer):
    with pytest.raises(SpecError, match="SGD without momentum and Adam"):
        Descent(optimizer, perceptron_of(float64_network(OF_TWO), OF_TWO))


@pytest.fixture
def cupy_is_numpy(monkeypatch):
    """NumPy where CuPy would be loaded."""
    monkeypatch.setattr(cupy_setup, "load", {"cupy": np}.__getitem__)


OPTIMIZERS = [SGD(learning_rate=0.1), Adam(learning_rate=0.02, epsilon=1e-8)]
CASES = [(OF_CLASSES, OPTIMIZERS[1]), (OF_TWO, OPTIMIZERS[0]), (OF_NUMBERS, OPTIMIZERS[1])]
"""Every loss and every optimizer, once at the least: a library has them as parts that know nothing of each other."""


def trained(trainee, loss, optimizer):
    """Losses and accuracies of three epochs in independent batches, the answers after them, and the weights."""
    structure = parse(f"F();D(7,r);{ENDS[loss][0]};")
    settings = Settings(batch=6, sampling="independent", loss=loss, optimizer=optimizer)
    trainee.begin(structure, SHAPE, X, ENDS[loss][1], settings, seed=0)
    trainee.restart(Network(structure, SHAPE, seed=3).named_weights())
    rng = np.random.default_rng(0)
    means = [trainee.train(sampled(len(X), settings, rng)) for _ in range(3)]
    return means, trainee.predict(X, 8), trainee.weights()


@cache
def trained_by_ours(loss, optimizer):
    """The same by the network, which the other contestants are held against."""
    return trained(OurTrainee("numpy"), loss, optimizer)


@pytest.mark.parametrize(("loss", "optimizer"), CASES)
@pytest.mark.parametrize("make", [PlainTrainee, KerasTrainee, TorchTrainee])
def test_all_contestants_learn_the_same_with_every_loss_and_optimizer(make, loss, optimizer):
    """Accuracy is None of numbers, for everyone."""
    pytest.importorskip({KerasTrainee: "keras", TorchTrainee: "torch"}.get(make, "numpy"))
    ours, expected, weights = trained_by_ours(loss, optimizer)
    theirs, answers, others = trained(make(), loss, optimizer)
    assert [right is None for _, right in theirs] == [loss == OF_NUMBERS] * 3
    np.testing.assert_allclose([a for a, _ in theirs], [a for a, _ in ours], rtol=1e-4)
    assert [right for _, right in theirs] == [None if r is None else pytest.approx(r) for _, r in ours]
    np.testing.assert_allclose(answers, expected, rtol=2e-3, atol=1e-4)
    assert {name: w.shape for name, w in others.items()} == {name: w.shape for name, w in weights.items()}


@pytest.mark.usefixtures("cupy_is_numpy")
@ON_ALL_LOSSES
@pytest.mark.parametrize("copies", [False, True])
def test_on_cupy_s_arrays_the_plain_perceptron_is_the_same_to_the_bit(loss, copies):
    """With NumPy in CuPy's place; the data on the device, or copied batch by batch."""
    expected, other = (trained(t, loss, OPTIMIZERS[1]) for t in (PlainTrainee(), PlainTrainee("cupy", copies)))
    assert other[0] == expected[0]
    np.testing.assert_array_equal(other[1], expected[1])


@pytest.mark.skipif(bool(plain_network.missing("cupy")), reason=f"no GPU: {plain_network.missing('cupy')}")
@pytest.mark.parametrize("copies", [False, True])
def test_titanic_on_cuda_learns_what_it_learns_on_the_host(copies):
    (preset,) = select([f"{TITANIC}-sgd"])
    split, _, _ = images("titanic", 0, preset.scaling)
    found = []
    for trainee in (PlainTrainee(), PlainTrainee("cupy", copies)):
        trainee.begin(preset.structure, preset.image_shape, split.x_train, split.y_train[:, None], preset.settings, 0)
        trainee.restart(Network(preset.structure, preset.image_shape).named_weights())
        found.append(trainee.train(sampled(600, preset.settings, np.random.default_rng(0))))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_without_a_gpu_cupy_is_a_contestant_with_a_reason(monkeypatch):
    monkeypatch.setattr(plain_network, "missing", lambda library, copies: "there is no GPU")
    (cupy,) = entrants(["cupy_copies"], ["none"], 1)
    answer = Contestant(threads=1).answer({"do": "load", "kind": cupy.kind, "options": dict(cupy.options)})
    assert answer == {"status": "UNAVAILABLE", "reason": "there is no GPU"}


def test_on_cuda_keras_is_the_one_on_the_gpu():
    plain, keras = entrants(["plain"], ["keras:jax"], 3, on_cuda=True)
    assert (plain.name, plain.kind, dict(plain.options)) == ("plain", "plain", {"library": "numpy"})
    assert (keras.name, keras.kind, keras.settings) == ("keras:jax cuda", "keras_jax_cuda", {"KERAS_BACKEND": "jax"})


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (Settings(batch=4, sampling="independent"), [4] * 3),
        (Settings(batch=10, sampling="independent"), [10]),
        (Settings(batch=99, sampling="independent"), [10]),
        (Settings(batches=3, sampling="independent"), [4] * 3),
    ],
)
def test_independent_batches_are_of_one_size_and_each_is_drawn_without_replacement(settings, sizes):
    parts = list(sampled(10, settings, np.random.default_rng(0)))
    assert [len(part) for part in parts] == sizes
    assert all(len(set(part)) == len(part) for part in parts)


def test_independent_batches_share_samples_and_leave_some_out():
    parts = np.array(list(sampled(100, Settings(batch=50, sampling="independent"), np.random.default_rng(0))))
    assert 50 < len(np.unique(parts)) < 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "lots"}, "unknown sampling 'lots'; known: permutation, independent"),
        ({"sampling": "independent", "shuffle": False}, "has no order to keep"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        Settings(**settings)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.id)
def test_a_preset_fits_its_data_and_its_settings_cross_a_pipe(preset):
    """MNIST is not read here: it has ten classes."""
    samples, classes = 60_000, 10
    if preset.id != MNIST:
        split, classes, _ = images(preset.dataset, 0, preset.scaling)
        samples = len(split.x_train)
    require_fit(preset, samples, classes, 1e10, 4)
    assert from_plain(to_plain(preset.settings)) == preset.settings


def test_of_the_281_passengers_of_the_test_101_survived():
    split = datasets.load("titanic")
    assert (len(split.x_train), len(split.y_test), int(split.y_test.sum())) == (600, 281, 101)


def test_presets_are_found_by_name_and_by_group():
    assert [preset.id for preset in select([TITANIC])] == ["mlp-titanic-sgd", "mlp-titanic-adam"]
    assert [preset.id for preset in select([MNIST])] == [MNIST]
    with pytest.raises(SpecError, match="unknown preset 'mlp-cats'; known: mlp-housing, "):
        select(["mlp-cats"])


def test_a_sweep_has_every_batch_size_that_there_are_samples_for():
    (preset,) = select([f"{TITANIC}-sgd"])
    found = sweep(preset, 600)
    assert [(each.batch, each.steps) for each in found] == [(size, 30) for size in (1, 8, 64, 512)]


def test_a_turn_may_be_several_epochs_and_the_last_one_fewer():
    experiment = replace(own("digits"), epochs=5, batches=3, turn_epochs=2)
    assert list(experiment.turns(30)) == [Turn(0, 0, 3, 2), Turn(2, 0, 3, 2), Turn(4, 0, 3, 1)]
    assert experiment.plan.startswith("5 epochs in turns of 2, 3 batches")


@pytest.mark.parametrize(
    ("dataset", "structure", "loss"),
    [
        ("housing", "F();D(1);", OF_NUMBERS),
        ("titanic", "F();D(1,s);", OF_TWO),
        ("titanic", "F();D(2,sm);", OF_CLASSES),
        ("digits", None, OF_CLASSES),
    ],
)
def test_the_loss_follows_from_the_data_and_the_last_layer(dataset, structure, loss):
    assert own(dataset, structure).loss == loss


def test_numbers_need_one_linear_unit():
    with pytest.raises(SpecError, match=r"housing has no classes: the last layer must be D\(1\), not D\(2,sm\)"):
        require_fit(own("housing", "F();D(2,sm);"), 400, 0, 1e9, 1)


def test_numbers_are_judged_by_their_squared_error_and_two_classes_by_the_side_of_one_half():
    assert judged(np.array([[1.0], [4.0]]), np.array([0.0, 2.0]), OF_NUMBERS) == (None, 2.5)
    accuracy, loss = judged(np.array([[0.25], [1.0]]), np.array([1, 0]), OF_TWO)
    assert accuracy == 0.0
    assert loss == pytest.approx(-(math.log(0.25) + math.log(1e-7)) / 2)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, AMSGrad(), SGD(momentum=0.5)])
def test_a_description_of_an_optimizer_makes_it_again(optimizer):
    assert named(**described(optimizer)) == optimizer


def test_a_learning_rate_that_changes_has_no_description():
    with pytest.raises(SpecError, match="cannot be written as a number"):
        described(SGD(learning_rate=CosineDecay(0.1, 10)))


def test_the_housing_preset_finds_the_line_of_least_squares(tmp_path):
    """0.8^50 = 1.4e-5 of the way is left after 50 steps at rate 0.1 on data of mean 0 and deviation 1."""
    words = ["train", "--preset", "mlp-housing", "--impl", "numpy", "--impl", "plain", "--against", "none"]
    result = CliRunner().invoke(main, [*words, "--threads", "1", "--db", str(tmp_path / "a.sqlite")])
    assert result.exit_code == 0, result.output
    assert "The line against least squares" in result.output
    store = Store(tmp_path / "a.sqlite")
    rows = store.trainings()
    store.close()
    split, _, _ = images("housing", 0, "standard")
    best = np.polyfit(split.x_train.reshape(-1), split.y_train, 1)
    assert len(rows) == 2
    for row in rows:
        np.testing.assert_allclose(row.parameters, best, rtol=1e-4)
        assert set(row.accuracies) == {None}
        assert row.test_accuracy is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "mlp-cats"], "unknown preset 'mlp-cats'"),
        (["--preset", "mlp-housing", "--dataset", "digits"], "give --experiment, --preset, or --dataset"),
        (["--preset", "mlp-housing", "--break-even", "--batch", "3"], "--break-even chooses batches"),
        (["--preset", "mlp-housing", "--batch", "401"], "there are only 400 samples to train on"),
        (["--preset", "mlp-housing", "--device", "cuda", "--as-published"], "leave out --device cuda"),
        (["--preset", "mlp-housing", "--device", "cuda", "--against", "torch"], "torch trains on the CPU only"),
    ],
)
def test_bad_input_is_answered_in_one_line_with_status_2(tmp_path, words, message):
    result = CliRunner().invoke(main, ["train", *words, "--db", str(tmp_path / "a.sqlite")])
    assert result.exit_code == 2
    assert message in result.output


ROW = Training(
    experiment=f"{TITANIC}-sgd",
    dataset="titanic",
    structure="F();D(15,r);D(1,s);",
    plan="a plan",
    repetition=0,
    contestant="plain",
    competitor=True,
    status="OK",
    batch=150,
    steps=(4, 4),
    seconds=(1.0, 2.0),
    losses=(0.5, 0.25),
    accuracies=(0.5, 0.75),
    test_accuracy=1 - 30 / 281,
    test_loss=0.4,
    test_samples=281,
)


def cells(table):
    return [line.cells for section in table.sections for line in section.lines]


def test_people_misclassified_are_counted_over_the_experiments_and_stand_beside_the_published():
    rows = [ROW, replace(ROW, repetition=1, test_accuracy=1 - 45 / 281)]
    (table,) = preset_tables.tables(rows)
    assert cells(table) == [
        ("plain", "2", "37.5 [30.0, 45.0]", "30", "45", "281"),
        ("published", "20", "25 to 30", "-", "-", "281"),
    ]


def test_losses_by_epoch_stand_beside_the_published_ones():
    (table,) = preset_tables.tables([replace(ROW, experiment=MNIST, losses=tuple(range(10)))])
    ours, numpy, cupy = cells(table)
    assert ours == ("plain", *(f"{epoch}.000" for epoch in range(10)), "3.00", "0.8932")
    assert numpy[:4] == ("published, numpy", "4.081", "0.319", "-")
    assert cupy[-3:] == ("0.067", "10.2", "-")


@pytest.mark.parametrize(
    ("own", "yardstick", "expected"),
    [
        ({1: 2.0, 8: 1.0, 64: 1.0}, {1: 1.0, 8: 2.0, 64: 3.0}, "8"),
        ({1: 0.5, 8: 3.0, 64: 1.0}, {1: 1.0, 8: 2.0, 64: 3.0}, "64"),
        ({1: 2.0, 8: 3.0}, {1: 1.0, 8: 2.0}, "never"),
        ({1: 2.0}, {}, "-"),
    ],
)
def test_it_pays_from_the_smallest_batch_on_after_which_it_never_loses(own, yardstick, expected):
    assert preset_tables.pays_from(own, yardstick) == expected


def test_steps_at_several_batch_sizes_make_a_table_of_who_pays_when():
    steps = [
        replace(
            ROW,
            contestant=name,
            plan=f"2 steps, batches of {size}",
            turn_epochs=0,
            batch=size,
            steps=(1, 1),
            seconds=(time, time),
        )
        for name, times in {"plain": (1e-3, 4e-3), "cupy": (2e-3, 2e-3)}.items()
        for size, time in zip((8, 512), times, strict=True)
    ]
    (table,) = preset_tables.tables(steps)
    assert cells(table) == [("plain", "1.00", "4.00", "-"), ("cupy", "2.00", "2.00", "512")]
    assert preset_tables.tables(steps[:1]) == ()
