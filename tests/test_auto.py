"""Auto: the fastest measured for the same problem, else for the nearest, among those that can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import impls.auto as table_of_machine
from bench import auto, local
from bench.store import Store, StoreError
from impls import DIRECTIONS, OPS, Case, Unavailable, parse, parse_case, registry
from impls.auto import AUTO, DEFAULT, NEIGHBOURS, ONE_POOL, Table, choose, entries, read, write
from impls.specs import FORWARD, GRAD_INPUT, directions_of
from tests.test_results import ROW, RUN

DENSE = "8x{0},u8"


def table(*times: tuple[int, str, float]) -> Table:
    """Dense layers by their inputs, and the seconds of one implementation each."""
    return Table(entries(("dense", FORWARD, DENSE.format(n), name, seconds) for n, name, seconds in times))


def dense(inputs: int) -> Case:
    """A dense layer of that many inputs."""
    return parse_case(f"dense:{DENSE.format(inputs)}")


def test_the_same_problem_decides_alone_where_it_was_measured():
    """Whatever its neighbours say."""
    near = [(n, name, seconds) for n in (31, 33) for name, seconds in (("slow", 2.0), ("fast", 1.0))]
    assert table((32, "slow", 1.0), (32, "fast", 2.0), *near).choose(dense(32), FORWARD) == "slow"


def test_otherwise_the_nearest_ones_decide_together():
    """One whose noise misleads is outvoted; one that is far is not asked."""
    near = [(n, "right", 1.0) for n in (30, 31, 33)] + [(30, "wrong", 1.5), (31, "wrong", 1.5), (33, "wrong", 0.9)]
    far = [(9999, "right", 1e6), (9999, "wrong", 1.0)]
    assert len({n for n, *_ in near}) == NEIGHBOURS
    assert table(*near, *far).choose(dense(32), FORWARD) == "right"


def test_distance_is_that_of_logarithms():
    """Between 10 and 1000, 90 is nearer to 10... and 120 is nearer to 1000."""
    measured = table((10, "small", 1.0), (10, "large", 2.0), (1000, "small", 2.0), (1000, "large", 1.0))
    nearest = [measured._nearest(dense(n), FORWARD)[0].case for n in (90, 120)]
    assert nearest == [dense(10), dense(1000)]


def test_what_cannot_is_not_chosen():
    """Even for the very problem, if anything else was measured."""
    measured = table((32, "fast", 1.0), (32, "slow", 2.0))
    assert measured.choose(dense(32), FORWARD, lambda name: name != "fast") == "slow"
    assert measured.choose(dense(32), FORWARD, lambda name: False) is None


def test_a_problem_left_out_is_judged_by_the_others():
    measured = table((32, "a", 1.0), (32, "b", 2.0), (33, "a", 2.0), (33, "b", 1.0))
    assert measured.choose(dense(32), FORWARD, left_out=True) == "b"


def test_a_table_survives_its_file(tmp_path):
    """With its origin."""
    before = Table(table((32, "fast", 1.25), (32, "slow", 2.0), (8, "fast", 1e-7)).entries, "measured: here")
    write(before, tmp_path / "folder" / "table.csv")
    assert read(tmp_path / "folder" / "table.csv") == before


@pytest.mark.parametrize("op", ["conv2d", "dense", "maxpool2d"])
def test_the_default_was_measured_for_every_direction_of_a_layer(op):
    """It says on what, and every name in it is an implementation."""
    default = read(DEFAULT)
    found = [entry for entry in default.entries if entry.case.op == op]
    assert default.origin.startswith("measured: ")
    assert {entry.direction for entry in found} == set(directions_of(op))
    assert {name for entry in found for name in entry.seconds} <= set(registry.names(op))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_network_stays_within_one_thread_pool(op, direction):
    """Also for an operation that was never measured."""
    case = parse_case({"conv2d": "conv2d:2x9x9x3,k3x3,f4", "dense": "dense:2x9,u4"}.get(op, f"{op}:2x9x9x3,pool2x2"))
    if direction in directions_of(op):
        assert choose(case, direction, ONE_POOL).startswith(ONE_POOL)


def test_what_nothing_computes_is_refused_by_name():
    """float64 is the reference's alone."""
    with pytest.raises(Unavailable, match="nothing that is known computes dense:2x9,u4,float64 forward by numba_jit"):
        choose(parse_case("dense:2x9,u4,float64"), FORWARD, ONE_POOL)


def test_this_machines_table_goes_before_the_default(tmp_path, monkeypatch):
    """Once it has been written where it is looked for."""
    case = parse_case("dense:28x4096,u64,relu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("numpy", "numba_jit"):
        write(Table(entries([("dense", FORWARD, str(case.spec), name, 1.0)])), table_of_machine.measured_path())
        table_of_machine.tables.cache_clear()
        assert choose(case, FORWARD) == name
    table_of_machine.tables.cache_clear()


@pytest.mark.parametrize("text", ["conv2d:2x5x7x3,k3x3,f4,relu", "dense:5x9,u4", "maxpool2d:2x6x8x3,pool2x2"])
def test_auto_is_an_implementation_that_is_right(text):
    """Judged within the bound of the one that it hands a direction to."""
    case = parse_case(text)
    for direction in directions_of(case.op):
        assert local.judge(registry.get(case.op, AUTO), case, direction).bounds <= 1


def test_packed_weights_are_those_of_the_plans_that_gain_from_them(monkeypatch):
    """Winograd packs for the forward pass; the input gradient takes the weights as they are."""
    chosen = {FORWARD: "numba_jit_winograd", GRAD_INPUT: "numpy_gemm"}
    monkeypatch.setattr(table_of_machine, "choose", lambda case, direction, pool="": chosen[direction])
    spec, rng = parse("conv2d", "2x9x8x6,k3x3,f5"), np.random.default_rng(0)
    x, w, b, dy = (rng.standard_normal(s, np.float32) for s in (spec.x_shape, spec.w_shape, spec.b_shape, spec.y_shape))
    y, dx = np.empty(spec.y_shape, np.float32), np.empty(spec.x_shape, np.float32)
    plan = registry.get("conv2d", AUTO).plan(spec, (FORWARD, GRAD_INPUT))
    packed = plan.pack(w)
    assert packed.of[GRAD_INPUT] is w
    assert packed.of[FORWARD] is not w
    plan.bind(FORWARD, x, packed, b, y)()
    plan.bind(GRAD_INPUT, dy, packed, dx)()
    np.testing.assert_array_equal(y, local.compute(plan, FORWARD, (x, w, b))[0])
    np.testing.assert_array_equal(dx, local.compute(plan, GRAD_INPUT, (dy, w))[0])


def test_weights_that_nothing_packs_are_refused(monkeypatch):
    monkeypatch.setattr(table_of_machine, "choose", lambda case, direction, pool="": "numpy_gemm")
    plan = registry.get("conv2d", AUTO).plan(parse("conv2d", "1x4x4x1,k3x3,f1"), (FORWARD,))
    with pytest.raises(NotImplementedError, match="gains nothing from packed weights"):
        plan.pack(np.ones((3, 3, 1, 1), np.float32))


def test_regret_is_the_time_of_what_is_chosen_over_the_fastest():
    measured = table((8, "a", 1.0), (8, "b", 4.0), (16, "a", 1.0), (16, "b", 1.0), (32, "b", 1.0))
    found = auto.regret("always b", lambda entry: "b", measured.entries)
    assert found is not None
    assert (found.problems, found.worst, found.worst_case) == (3, 4.0, DENSE.format(8))
    assert found.mean == pytest.approx(4 ** (1 / 3))
    assert auto.regret("never", lambda entry: None, measured.entries) is None


def test_every_rule_is_judged_the_cheapest_first():
    found = auto.regrets(
        table(*((n, name, s) for n in (8, 16, 32) for name, s in (("numpy", 2.0), ("numba_jit", 1.0))))
    )
    rules = {regret.rule: regret.mean for regret in found}
    assert list(rules.values()) == sorted(rules.values())
    assert rules["always numpy"] == rules["the published rules"] == pytest.approx(2.0)
    assert rules["table, problem left out"] == pytest.approx(1.0)


def test_only_this_machines_times_of_this_commit_are_taken(tmp_path):
    """And of these only what is ours, on the processor, and timed."""
    store = Store(tmp_path / "store.sqlite")
    ours = replace(ROW, op="dense", direction=FORWARD, spec=DENSE.format(8), device="cpu", competitor=False)
    timed = replace(ours, implementation="numpy", status="OK", min_s=0.5)
    here = store.start(replace(RUN, machine={"id": "here", "commit": "c1"}))
    elsewhere = store.start(replace(RUN, machine={"id": "elsewhere", "commit": "c1"}))
    others = (
        replace(timed, implementation="keras", competitor=True),
        replace(timed, implementation="cuda", device="cuda"),
        replace(ours, implementation="wrong", status="WRONG", min_s=None),
    )
    for row in (timed, *others):
        store.add(here, row)
    store.add(elsewhere, replace(timed, implementation="there"))
    (entry,) = auto.from_store(store, "here", "c1").entries
    assert dict(entry.seconds) == {"numpy": 0.5}
    with pytest.raises(StoreError, match="no times of machine here with commit c2; make some"):
        auto.from_store(store, "here", "c2")
    store.close()
