"""The engine against independent loops, and the promises it makes about slots, neighbours and programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlexp import api, learners, losses, models, optim
from dlexp.data import bundled
from dlexp.sweep import engine, geomspace, grid, layouts, machine, programs, recorder
from dlexp.sweep import plan as planning
from dlexp.sweep.grids import Identity
from dlexp.theory.optimizers import quadratic_contraction
from dlexp.types import Experiment, Learner, Measurement, Range, Sweep
from tests.conftest import counted_compiles, finished, metric, small_learner


def quadratic_learner(config, num_steps):
    """Gradient descent on curvature w^2 / 2 from w = 1: no data, no labels, no network."""
    hyper = {"learning_rate": optim.LEARNING_RATE, "curvature": Range(0.0)}

    def update(key, hyper, data, w):
        tx = optim.sgd().make_tx({"momentum": 0.0, **hyper})
        grads = jax.grad(lambda w: 0.5 * hyper["curvature"] * w**2)(w)
        updates, _ = tx.update(grads, tx.init(w), w)
        return optax.apply_updates(w, updates), {"batch/size": jnp.abs(w)}

    return Learner(
        data=np.zeros(1, np.float32),
        hyper=hyper,
        init=lambda key, hyper, data: jnp.ones((), float),
        update=update,
        evaluate=lambda key, hyper, data, w: {"test/w": w},
    )


def plain_programs(config):
    """The jitted start, step and loss of `plain_loop`, for every rate and seed."""
    data = bundled.load("digits")
    model = models.mlp(width=8, num_layers=2, num_outputs=10)
    make_tx = {"adam": optax.adam, "sgd": optax.sgd}[config]

    def start(key, rate):
        params = model.init(key, {"init_scale": 1.0, "bias_scale": 0.0}, data.train.inputs[:1])["params"]
        return params, make_tx(rate).init(params)

    def loss(params, key, inputs, labels):
        logits, _ = model.apply({"params": params}, {}, inputs, key=key, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(params, opt_state, rate, key, inputs, labels):
        grads = jax.grad(loss)(params, key, inputs, labels)
        updates, opt_state = make_tx(rate).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return tuple(map(jax.jit, (start, step, loss)))


@jax.jit
def plain_rows(key, step, num_rows):
    batch_key, _ = jax.random.split(jax.random.fold_in(key, step))
    return jax.random.randint(batch_key, (16,), 0, num_rows)


def plain_loop(start, step, loss, rate, seed, num_steps):
    """One run with nothing of the engine, the learner or the optimizer factory: raw Optax, jitted steps."""
    data = bundled.load("digits")
    init_key, update_key = (jax.random.fold_in(jax.random.key(np.uint32(seed)), purpose) for purpose in (0, 1))
    params, opt_state = start(init_key, rate)
    for place in range(num_steps):
        rows = np.asarray(plain_rows(update_key, place, len(data.train.inputs)))
        inputs, labels = np.asarray(data.train.inputs)[rows], np.asarray(data.train.labels)[rows]
        params, opt_state = step(params, opt_state, rate, update_key, inputs, labels)
    return float(loss(params, update_key, data.test.inputs, data.test.labels))


@pytest.mark.usefixtures("x64")
def test_a_vmapped_sweep_equals_a_plain_loop_in_double_precision(devices):
    rates = (0.01, 0.1)
    rows = finished(grid(config={"optimizer": ("adam", "sgd")}, hyper={"learning_rate": rates}, seeds=2), devices)
    for optimizer in ("adam", "sgd"):
        plain = plain_programs(optimizer)
        for rate in rates:
            for seed in (0, 1):
                expected = plain_loop(*plain, rate, seed, num_steps=20)
                measured = metric(rows, (optimizer, rate, seed), "test/loss")[-1]
                # Double precision rounds at 1e-16; 20 steps of different summation order cost some digits.
                assert measured == pytest.approx(expected, rel=1e-11)


def test_a_run_is_bit_identical_in_another_slot_and_beside_a_nan_run(devices):
    alone = finished(grid(hyper={"learning_rate": (0.01,)}, seeds=(3,)), devices)
    crowd = finished(grid(hyper={"learning_rate": (1e30, 0.1, 0.01, 0.001)}, seeds=(5, 3, 4)), devices)
    place, width = crowd[(0.01, 3)][1], crowd[(0.01, 3)][0].layout.width
    assert place % width != 0  # another slot, on the device of the runs that are lost
    assert place // width == crowd[(1e30, 3)][1] // width
    assert crowd[(1e30, 3)][0].status[crowd[(1e30, 3)][1]] == recorder.NONFINITE
    for name, values in alone[(0.01, 3)][0].metrics.items():
        np.testing.assert_array_equal(metric(crowd, (0.01, 3), name), values[0])


def test_what_chance_decides_is_the_step_s_own_wherever_calls_end(devices, monkeypatch):
    def make_learner(config, num_steps):
        def update(drawn, hyper, data, state):
            return state.at[drawn["step"]].set(drawn["number"] * hyper["scale"]), {"batch/number": drawn["number"]}

        def draw(key, hyper, data):
            return {"step": data[jax.random.randint(key, (), 0, len(data))], "number": jax.random.normal(key)}

        def init(key, hyper, data):
            return jnp.zeros(len(data))

        def evaluate(key, hyper, data, state):
            return {"test/state": state}

        return Learner(np.arange(7), {"scale": Range()}, init, update, evaluate, draw)

    runs = grid(hyper={"scale": (1.0, 2.0)}, seeds=2)
    made = finished(runs, devices, make_learner=make_learner, num_steps=40, num_evals=4)
    for seed in (0, 1):
        key, expected = jax.random.fold_in(jax.random.key(np.uint32(seed)), 1), np.zeros(7)
        for step in range(40):
            own = jax.random.fold_in(key, step)
            expected[int(jax.random.randint(own, (), 0, 7))] = float(jax.random.normal(own))
        np.testing.assert_array_equal(metric(made, (1.0, seed), "test/state")[-1], expected.astype(np.float32))
        np.testing.assert_array_equal(metric(made, (2.0, seed), "test/state")[-1], 2 * expected.astype(np.float32))
    monkeypatch.setattr(engine, "SEGMENT_SECONDS", 0.0)  # a step a call
    again = finished(runs, devices, make_learner=make_learner, num_steps=40, num_evals=4)
    for key in made:
        np.testing.assert_array_equal(metric(again, key, "test/state"), metric(made, key, "test/state"))


def test_a_learner_needs_no_data(devices):
    def update(drawn, hyper, data, w):
        return w * (1 - hyper["learning_rate"]), {"batch/loss": w * w}

    shrinking = Learner(
        (),
        {"learning_rate": Range(0.0)},
        lambda key, hyper, data: jnp.float32(1),
        update,
        lambda key, hyper, data, w: {"test/loss": w * w},
    )
    made = finished(grid(hyper={"learning_rate": (0.1,)}), devices, make_learner=lambda *_: shrinking, num_steps=4)
    np.testing.assert_allclose(metric(made, (0.1, 0), "test/loss"), 0.9 ** np.array([0, 4, 8]), rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_debug_nans", True),
    ],
)
def test_a_run_has_the_same_numbers_whatever_jax_is_told(devices, setting, value):
    runs = grid(hyper={"learning_rate": (0.1, 1e30)}, seeds=(2, 3))
    usual, before = finished(runs, devices), getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        other = finished(grid(hyper={"learning_rate": (0.1, 1e30)}, seeds=(3,)), devices)
    finally:
        jax.config.update(setting, before)
    for key in other:
        for name in ("test/loss", "batch/loss"):
            np.testing.assert_array_equal(metric(other, key, name), metric(usual, key, name))


def test_a_learner_without_an_update_makes_no_step():
    idle = quadratic_learner({}, 0)._replace(update=None)
    with pytest.raises(TypeError, match="nothing is trained"):
        idle.step(jax.random.key(0), {}, idle.data, jnp.zeros(()))


def test_padding_changes_nothing(devices):
    few = finished(grid(hyper={"learning_rate": (0.01, 0.1)}, seeds=1), devices)
    full = finished(grid(hyper={"learning_rate": (0.01, 0.1)}, seeds=10), devices)
    assert len(full) == 20
    for key in few:
        np.testing.assert_array_equal(metric(few, key, "batch/loss"), metric(full, key, "batch/loss"))


@pytest.mark.usefixtures("cold_cache")
def test_new_swept_values_seeds_and_run_counts_compile_nothing(devices):
    with counted_compiles() as first:
        finished(grid(hyper={"learning_rate": (0.01, 0.1)}, seeds=2), devices)
    assert len(first) >= 2  # initialize, segment
    with counted_compiles() as second:
        finished(grid(hyper={"learning_rate": geomspace(0.001, 1, 7)}, seeds=5), devices)
        finished(grid(hyper={"learning_rate": (0.3,)}, seeds=(9,)), devices, num_steps=40, num_evals=4)
    assert second == []


def test_the_next_chunk_is_put_on_the_devices_before_this_one_is_finished(devices, monkeypatch):
    put, arguments = [], programs.arguments

    def noted(group, runs, sharding):
        put.append(len(runs))
        return arguments(group, runs, sharding)

    monkeypatch.setattr(programs, "arguments", noted)
    rows = layouts.DEFAULT_WIDTH["cpu"] * len(devices)
    declared = Sweep(grid(hyper={"learning_rate": (0.1,)}, seeds=2 * rows + 1), small_learner, 20, 2)
    plan = planning.make(Identity("tests.ahead", 1, "main", 20), declared, devices)
    seen = [len(put) for event in engine.train(plan, devices) if isinstance(event, engine.Finished)]
    assert seen == [2, 3, 3]
    assert put == [rows, rows, 1]


@pytest.mark.usefixtures("cold_cache")
def test_optimizers_of_one_formula_share_their_programs(devices):
    rates = {"learning_rate": (0.01,)}
    with counted_compiles() as one:
        finished(grid(config={"optimizer": ("momentum",)}, hyper=rates), devices)
    with counted_compiles() as both:
        finished(grid(config={"optimizer": ("sgd", "momentum")}, hyper=rates), devices)
    assert len(one) >= 2
    assert both == []


def test_gradient_descent_on_a_quadratic_contracts_as_predicted_and_diverges_exactly_above_two_over_curvature(
    devices,
):
    rates = (0.1, 0.5, 0.9, 0.999, 1.001, 1.5)
    sweep = grid(hyper={"learning_rate": rates, "curvature": (2.0,)}, seeds=1)
    rows = finished(sweep, devices, make_learner=quadratic_learner, num_steps=30, num_evals=30)
    for rate in rates:
        w = metric(rows, (rate, 2.0, 0), "test/w")
        np.testing.assert_allclose(w, quadratic_contraction(rate, 2.0) ** np.arange(31), rtol=2e-5)
        assert (abs(w[-1]) > 1) == (rate > 2 / 2.0)


def test_a_run_that_leaves_the_finite_numbers_says_when_and_is_nan_from_there(devices):
    rows = finished(
        grid(hyper={"learning_rate": (1e10, 0.1), "curvature": (2.0,)}),
        devices,
        make_learner=quadratic_learner,
        num_steps=20,
        num_evals=10,
    )
    lost, row = rows[(1e10, 2.0, 0)]
    # |w| grows by 2e10 a step from 1: 8e30 after three updates, beyond 3.4e38 at the evaluation after four.
    assert lost.status[row] == recorder.NONFINITE
    assert lost.nonfinite_at[row] == 4
    assert np.isfinite(lost.metrics["test/w"][row][:2]).all()
    assert np.isnan(lost.metrics["test/w"][row][2:]).all()
    kept, row = rows[(0.1, 2.0, 0)]
    assert kept.status[row] == recorder.OK
    assert kept.nonfinite_at[row] == -1
    assert np.isfinite(kept.metrics["test/w"][row]).all()


def test_a_chunk_whose_runs_are_all_lost_ends_early_with_the_same_rows(devices):
    plan = planning.make(
        Identity("tests.any", 1, "main", 4000),
        Sweep(grid(hyper={"learning_rate": (1e30,)}), small_learner, 4000, 4),
        devices,
    )
    assert sum(event.run_steps for event in engine.train(plan, devices) if isinstance(event, engine.Advanced)) < 400
    alone = finished(grid(hyper={"learning_rate": (1e30,)}), devices, num_steps=40, num_evals=4)
    beside = finished(grid(hyper={"learning_rate": (1e30, 0.1)}), devices, num_steps=40, num_evals=4)
    chunk, row = beside[(1e30, 0)]
    for name, values in alone[(1e30, 0)][0].metrics.items():
        np.testing.assert_array_equal(values[0], chunk.metrics[name][row])
    assert alone[(1e30, 0)][0].nonfinite_at[0] == chunk.nonfinite_at[row]


def test_done_runs_are_not_trained_again(devices):
    sweep = Sweep(grid(hyper={"learning_rate": (0.01, 0.1)}, seeds=2), small_learner, 20, 2)
    plan = planning.make(Identity("tests.any", 1, "main", 20), sweep, devices)
    done = {run_id for run_id, run in plan.runs(plan.groups[0]) if run.seed == 0}
    trained = [e for e in engine.train(plan, devices, plan.missing(done)) if isinstance(e, engine.Finished)]
    assert {run.seed for chunk in trained for _, run in chunk.runs} == {1}


def test_measuring_at_initialization_alone_needs_no_update(devices):
    rows = finished(grid(hyper={"learning_rate": (0.1,)}, seeds=2), devices, num_steps=0)
    assert "batch/loss" not in rows[(0.1, 0)][0].metrics
    assert metric(rows, (0.1, 0), "test/loss").shape == (1,)
    assert metric(rows, (0.1, 0), "test/loss") != metric(rows, (0.1, 1), "test/loss")


def test_seeds_are_common_random_numbers(devices):
    def make_learner(config, num_steps):
        model = models.mlp(width=8, num_layers=2, num_outputs=10, dropout="inverted")
        data = bundled.load("digits")
        return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), data, batch_size=16)

    sweep = grid(hyper={"learning_rate": (0.0, 1e-9), "dropout_rate": (0.5,)}, seeds=2)
    rows = finished(sweep, devices, make_learner=make_learner, num_steps=5, num_evals=5)
    still, other, seed = ((0.0, 0.5, 0), (1e-9, 0.5, 0), (0.0, 0.5, 1))
    # Weights that (all but) stand still: the losses of the steps differ by their batches and masks alone.
    np.testing.assert_allclose(metric(rows, still, "batch/loss"), metric(rows, other, "batch/loss"), rtol=1e-5)
    assert len(set(metric(rows, still, "batch/loss").tolist())) == 5
    assert metric(rows, still, "test/loss")[0] == metric(rows, other, "test/loss")[0]
    assert metric(rows, still, "test/loss")[0] != metric(rows, seed, "test/loss")[0]
    assert metric(rows, still, "batch/loss")[0] != metric(rows, seed, "batch/loss")[0]


def test_segments_of_any_length_give_the_same_numbers(devices, monkeypatch):
    whole = finished(grid(hyper={"learning_rate": (0.01,)}), devices)
    monkeypatch.setattr(engine, "SEGMENT_SECONDS", 0.0)  # one step a call
    pieces = finished(grid(hyper={"learning_rate": (0.01,)}), devices)
    for name, values in whole[(0.01, 0)][0].metrics.items():
        np.testing.assert_array_equal(values, pieces[(0.01, 0)][0].metrics[name])


def test_the_first_evaluation_is_the_same_in_a_call_of_its_own_and_with_the_first_steps(devices, monkeypatch):
    rates = grid(hyper={"learning_rate": (0.01, 1e30)})
    own = finished(rates, devices, num_steps=4)
    monkeypatch.setattr(engine, "CHUNKS_EVALUATED_ALONE", 0)
    together = finished(rates, devices, num_steps=4)
    for key, (chunk, row) in own.items():
        other, _ = together[key]
        assert other.nonfinite_at[row] == chunk.nonfinite_at[row]
        for name, values in chunk.metrics.items():
            np.testing.assert_array_equal(values[row], other.metrics[name][row])


def test_orthogonal_weights_can_be_drawn_on_several_devices(devices):
    def make_learner(config, num_steps):
        model = models.mlp(width=16, num_layers=4, num_outputs=10, initializer="orthogonal")
        return learners.supervised(model, losses.softmax_cross_entropy, optim.sgd(), bundled.load("iris"), batch_size=8)

    rows = finished(grid(hyper={"learning_rate": (0.1,)}, seeds=2), devices, make_learner=make_learner, num_steps=2)
    assert np.isfinite(metric(rows, (0.1, 1), "test/loss")).all()


def test_metrics_without_a_slash_are_refused(devices):
    def make_learner(config, num_steps):
        return quadratic_learner(config, num_steps)._replace(evaluate=lambda key, hyper, data, w: {"w": w})

    with pytest.raises(ValueError, match="names with a slash"):
        finished(grid(hyper={"learning_rate": (0.1,), "curvature": (1.0,)}), devices, make_learner=make_learner)


def test_means_over_steps_do_not_overflow(devices):
    def make_learner(config, num_steps):
        made = quadratic_learner(config, num_steps)
        return made._replace(update=lambda key, hyper, data, w: (w, {"batch/large": jnp.float32(1e38) + 0 * w}))

    sweep = grid(hyper={"learning_rate": (0.1,), "curvature": (1.0,)})
    rows = finished(sweep, devices, make_learner=make_learner)
    chunk, row = rows[(0.1, 1.0, 0)]
    assert chunk.status[row] == recorder.OK
    np.testing.assert_allclose(chunk.metrics["batch/large"][row], 1e38, rtol=1e-6)


def test_what_an_update_measures_is_averaged_over_its_interval(devices):
    rates = {"learning_rate": (0.5,), "curvature": (1.0,)}
    fine = finished(grid(hyper=rates), devices, make_learner=quadratic_learner, num_steps=12, num_evals=12)
    coarse = finished(grid(hyper=rates), devices, make_learner=quadratic_learner, num_steps=12, num_evals=3)
    steps = metric(fine, (0.5, 1.0, 0), "batch/size")
    np.testing.assert_allclose(steps, 0.5 ** np.arange(12), rtol=1e-6)
    means = metric(coarse, (0.5, 1.0, 0), "batch/size")
    np.testing.assert_allclose(means, steps.reshape(3, 4).mean(axis=1), rtol=1e-6)


def test_updates_may_measure_nothing_or_whole_numbers(devices):
    def make_learner(config, num_steps):
        def update(key, hyper, data, w):
            return w * 0.5, {"batch/count": jnp.int32(3)} if config["measures"] else {}

        return quadratic_learner(config, num_steps)._replace(
            update=update, evaluate=lambda key, hyper, data, w: {"test/w": w, "test/count": jnp.int32(7)}
        )

    sweep = grid(config={"measures": (True, False)}, hyper={"learning_rate": (0.1,), "curvature": (1.0,)})
    rows = finished(sweep, devices, make_learner=make_learner, num_steps=4, num_evals=2)
    assert metric(rows, (True, 0.1, 1.0, 0), "batch/count").tolist() == [3, 3]
    assert metric(rows, (False, 0.1, 1.0, 0), "test/count").tolist() == [7, 7, 7]
    assert metric(rows, (False, 0.1, 1.0, 0), "test/w").tolist() == [1, 0.25, 0.0625]


def test_a_measurement_is_run_on_the_host_saved_and_not_run_twice(tmp_path):
    seen = []

    def make(config, num_steps):
        def measure(hyper, seed):
            seen.append((config["size"], hyper["factor"], seed))
            value = np.inf if hyper["factor"] > 2 else hyper["factor"] * config["size"] + seed
            return {"value/sum": value, "value/both": np.array([value, 1.0])}

        return Measurement(measure, {"factor": Range(0.0, 10.0), "other": Range(default=1.0)})

    points = grid(config={"size": (10, 20)}, hyper={"factor": (1.0, 3.0)}, seeds=2)
    experiment = Experiment("tests.host", 1, "Measured?", lambda scale: {"main": Sweep(points, make, num_steps=0)})
    for _ in range(2):
        table = api.run(experiment, out=tmp_path)["main"]
    assert len(seen) == 8
    row = table.select(size=20, factor=1.0, seed=1)
    assert row.frame["value/sum"].tolist() == [21.0]
    np.testing.assert_array_equal(row.curves("value/both"), [[[21.0, 1.0]]])
    lost = table.select(factor=3.0).frame
    assert set(lost["status"]) == {"nonfinite"}
    with pytest.raises(ValueError, match="factor"):
        api.plan(experiment, axes={"factor": (11.0,)})


def test_measurements_and_learners_do_not_mix_and_take_no_steps(tmp_path):
    def make(config, num_steps):
        if config["kind"] == "learner":
            return small_learner({}, 0)
        return Measurement(lambda hyper, seed: {"a/b": 1.0}, {"learning_rate": Range(0.0)})

    points = grid(config={"kind": ("learner", "measurement")}, hyper={"learning_rate": (0.1,)}, seeds=1)
    mixed = Experiment("tests.mixed", 1, "Mixed?", lambda scale: {"main": Sweep(points, make, num_steps=0)})
    with pytest.raises(TypeError, match="some configs give a Learner, others a Measurement; split it"):
        api.run(mixed, out=tmp_path)
    stepping = Experiment("tests.steps", 1, "Steps?", lambda scale: {"main": Sweep(points, make, num_steps=10)})
    with pytest.raises(ValueError, match="a measurement takes no steps"):
        api.plan(stepping)


def test_data_in_double_precision_is_placed_as_jax_keeps_it(devices):
    """JAX 0.12 warns at float64 shapes where 0.10 is silent; the tests turn warnings into errors."""

    def make(config, num_steps):
        return quadratic_learner(config, num_steps)._replace(data={"double": np.ones(3), "long": np.arange(3)})

    points = grid(hyper={"learning_rate": (0.1,), "curvature": (1.0,)}, seeds=1)
    rows = finished(points, devices, make_learner=make, num_steps=4, num_evals=2)
    assert len(rows) == 1


def learner_told_the_step(is_told):
    """A sum over steps of the steps made so far; the other way, with a count of its own in the state."""

    def init(key, hyper, data):
        return {"sum": 0.0 * hyper["factor"], "seen": 0.0 * hyper["factor"], "count": jnp.zeros((), jnp.int32)}

    def changed(state, step, drawn, factor):
        grown = jax.lax.cond(step % 3 == 0, lambda x: x + factor * jnp.cos(x), lambda x: x, state["sum"])
        new = {"sum": grown, "seen": state["seen"] + step, "count": state["count"] + 1}
        return new, {"batch/drawn": drawn.astype(float)}

    def evaluate(key, hyper, data, state):
        return {"test/sum": state["sum"], "test/seen": state["seen"]}

    def told(drawn, hyper, data, state, *, step):
        return changed(state, step, drawn, hyper["factor"])

    def counting(drawn, hyper, data, state):
        return changed(state, state["count"], state["count"], hyper["factor"])

    ways = (told, evaluate, lambda key, hyper, data, step: step) if is_told else (counting, evaluate)
    return Learner({"x": np.ones(2)}, {"factor": Range(0.0)}, init, *ways)


@pytest.mark.parametrize("stepwise", [False, True])
def test_update_and_draw_are_told_the_step_if_they_ask_for_it(devices, stepwise, monkeypatch):
    monkeypatch.setattr(
        planning.Group, "with_layout", lambda self, layout: self._replace(layout=layout._replace(stepwise=stepwise))
    )
    points, steps = grid(hyper={"factor": (0.5, 2.0)}, seeds=2), {"num_steps": 40, "num_evals": 4}
    told, counting = (
        finished(points, devices, make_learner=lambda config, num_steps, way=way: learner_told_the_step(way), **steps)
        for way in (True, False)
    )
    seen = metric(told, (2.0, 1), "test/seen")
    assert seen.tolist() == [sum(range(stop)) for stop in (0, 10, 20, 30, 40)]
    for name in ("test/sum", "batch/drawn"):
        np.testing.assert_allclose(metric(told, (2.0, 1), name), metric(counting, (2.0, 1), name), rtol=1e-6)
    assert metric(told, (2.0, 1), "batch/drawn").tolist() == [4.5, 14.5, 24.5, 34.5]


def test_a_condition_on_the_step_stays_one_in_the_program_of_many_runs(devices):
    def program(is_told):
        sweep = Sweep(
            grid(hyper={"factor": (0.5, 2.0)}, seeds=4), lambda config, num_steps: learner_told_the_step(is_told), 40, 4
        )
        plan = planning.make(Identity("tests.any", 1, "main", 40), sweep, devices)
        (group,) = plan.groups
        return programs.lower(group, machine.mesh(devices))[1].program.as_text()

    conditions = [text.count("stablehlo.case") + text.count("stablehlo.if") for text in map(program, (True, False))]
    assert conditions[0] == conditions[1] + 1  # that of a count in the state became a choice between both branches
