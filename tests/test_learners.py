"""Learners by closed forms, by the engine's own runs, and by what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlexp import keys, learners, losses, models, optim
from dlexp.data import Dataset, Split, bundled
from dlexp.learners import Players
from dlexp.sweep import grid
from dlexp.types import Learner, Model, Range
from tests.conftest import finished, metric, small_learner

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, 60).astype(np.int32)


def train(learner, num_steps, hyper, key=KEY):
    """The state after so many steps, by the contract alone."""
    values = {name: legal.default for name, legal in learner.hyper.items()} | hyper
    data = jax.tree.map(jnp.asarray, learner.data)

    def step(index, state):
        return learner.step(jax.random.fold_in(key, index), values, data, state)[0]

    return jax.lax.fori_loop(0, num_steps, step, learner.init(key, values, data)), values


def evaluated(learner, state, values):
    return learner.evaluate(KEY, values, jax.tree.map(jnp.asarray, learner.data), state)


def supervised(data, *, num_outputs=3, loss=losses.softmax_cross_entropy, batch_size=16, **options):
    model = models.mlp(width=4, num_layers=2, num_outputs=num_outputs)
    return learners.supervised(model, loss, optim.sgd(), data, batch_size=batch_size, **options)


# Learning from examples


def graph_network():
    """Sums the features of a graph's nodes over its edges, weighted: two numbers to learn."""

    def init(key, hyper, inputs):
        return {"params": jnp.zeros(inputs["nodes"].shape[-1])}

    def apply(variables, hyper, inputs, *, key, train):
        messages = jnp.einsum("bij,bjf->bf", inputs["edges"], inputs["nodes"])
        return (messages @ variables["params"])[:, None], variables

    return Model(init, apply)


def test_a_graph_is_learned_from_as_a_pytree():
    rng = np.random.default_rng(0)
    inputs = {"nodes": rng.normal(size=(40, 3, 2)), "edges": rng.integers(0, 2, (40, 3, 3))}
    targets = np.einsum("bij,bjf->bf", inputs["edges"], inputs["nodes"]) @ [1.0, -2.0]
    data = Dataset(Split(inputs, targets))
    made = learners.supervised(graph_network(), losses.squared_error, optim.sgd(), data, batch_size=20)
    state, values = train(made, 200, {"learning_rate": 0.05})
    np.testing.assert_allclose(state.params, [1, -2], atol=1e-3)
    assert evaluated(made, state, values).keys() == {"train/loss"}


def test_a_language_model_has_labels_at_each_place():
    num_tokens, tokens = 7, np.random.default_rng(0).integers(0, 7, (30, 6)).astype(np.int32)
    following = (tokens + 1) % num_tokens
    model = Model(
        lambda key, hyper, inputs: {"params": jnp.zeros((num_tokens, num_tokens))},
        lambda variables, hyper, inputs, *, key, train: (variables["params"][inputs], variables),
    )
    data = Dataset(Split(tokens, following), test=Split(tokens[:3], following[:3]))
    made = learners.supervised(
        model, losses.softmax_cross_entropy, optim.sgd(), data, batch_size=10, sweep_num_train=True
    )
    start, values = train(made, 0, {"learning_rate": 5.0})
    before = evaluated(made, start, values)
    assert float(before["test/loss"]) == pytest.approx(np.log(7), rel=1e-6)
    assert float(before["train/accuracy"]) == pytest.approx(np.mean(following == 0), abs=1e-6)  # ties: class 0
    state, values = train(made, 100, {"learning_rate": 5.0})
    assert float(evaluated(made, state, values)["test/accuracy"]) == 1.0


def test_metrics_have_the_names_that_the_caller_gives_them():
    def top_two(outputs, labels):
        return jnp.any(jax.lax.top_k(outputs, 2)[1] == labels[:, None], axis=-1)

    made = supervised(Dataset(Split(INPUTS, LABELS)), metrics={"top_two": top_two})
    state, values = train(made, 0, {"learning_rate": 0.1})
    assert evaluated(made, state, values).keys() == {"train/loss", "train/top_two"}


def test_whole_numbers_beside_one_output_are_targets_of_a_regression():
    targets = np.arange(60, dtype=np.int32)
    measured = []
    for labels in (targets, targets.astype(np.float32)):
        made = supervised(Dataset(Split(INPUTS, labels)), num_outputs=1, loss=losses.squared_error, batch_size=None)
        state, values = train(made, 30, {"learning_rate": 0.01})
        measured.append(evaluated(made, state, values))
    assert measured[0].keys() == {"train/loss"}
    assert float(measured[0]["train/loss"]) == float(measured[1]["train/loss"])
    assert float(losses.squared_error(np.array([[3.0], [1.0]]), np.array([151, 1]))[0]) == 148.0**2


@pytest.mark.parametrize("num_classes", [3, losses.MANY_CLASSES, 1000])
def test_accuracy_is_that_of_argmax_with_any_number_of_classes(num_classes):
    logits = jax.random.randint(KEY, (400, num_classes), 0, 4).astype(float)  # many ties
    labels = np.array(jnp.argmax(logits, axis=-1))
    labels[::2] = np.random.default_rng(0).integers(0, num_classes, 200)
    np.testing.assert_array_equal(losses.accuracy(logits, labels), np.argmax(logits, axis=-1) == labels)


# Any function


def test_descent_on_a_quadratic_contracts_as_the_closed_form_says():
    curvatures = np.array([1.0, 4.0], np.float32)
    made = learners.descent(
        lambda key, hyper, data: jnp.ones_like(data),
        lambda key, hyper, data, weights: 0.5 * jnp.sum(data * weights**2),
        optim.sgd(),
        data=curvatures,
    )
    state, values = train(made, 20, {"learning_rate": 0.1})
    np.testing.assert_allclose(state.params, (1 - 0.1 * curvatures) ** 20, rtol=1e-5)
    assert float(evaluated(made, state, values)["train/loss"]) == pytest.approx(
        0.5 * np.sum(curvatures * (1 - 0.1 * curvatures) ** 40), rel=1e-5
    )
    assert int(state.step) == 20


def test_descent_without_data_minimises_what_chance_gives_in_each_step():
    """The mean of many draws is what the squared error of one draw at a time leads to."""
    falling = optim.Schedule({}, lambda hyper: lambda step: 1 / (1.0 + step))
    made = learners.descent(
        lambda key, hyper, data: jnp.zeros(()),
        lambda key, hyper, data, constant: 0.5 * jnp.mean((jax.random.exponential(key, (100,)) - constant) ** 2),
        optim.with_defaults(optim.sgd(falling), learning_rate=1.0),
    )
    assert made.data == ()
    state, _ = train(made, 300, {})
    assert float(state.params) == pytest.approx(1.0, abs=4 / np.sqrt(300 * 100))  # four standard errors


def test_descent_draws_its_problem_once_by_the_seed_and_measures_its_steps():
    made = learners.descent(
        lambda key, hyper, slope: jnp.zeros(()),
        lambda key, hyper, slope, weight: slope * weight,
        optim.adam(),
        problem=lambda key, hyper, data: jnp.exp(jax.random.normal(key)),
        evaluate=lambda key, hyper, slope, state: {"problem/slope": slope, "problem/step": state.step},
        measure_step=lambda hyper, step: {"step/length": -step.updates / hyper["learning_rate"]},
    )
    values = {name: legal.default for name, legal in made.hyper.items()} | {"learning_rate": 0.1}
    state = made.init(KEY, values, ())
    state, measured = made.step(jax.random.key(7), values, (), state)
    assert float(measured["step/length"]) == pytest.approx(1.0, rel=1e-5)  # Adam's first step is one rate long
    assert float(evaluated(made, state, values)["problem/slope"]) == float(jnp.exp(jax.random.normal(KEY)))
    assert int(evaluated(made, state, values)["problem/step"]) == 1


def test_descent_sees_batches_of_its_data():
    seen = []

    def loss(key, hyper, batch, weight):
        seen.append({name: array.shape for name, array in batch.items()})
        return jnp.mean((batch["inputs"] * weight - batch["targets"]) ** 2)

    inputs = np.linspace(1, 2, 50, dtype=np.float32)
    made = learners.descent(
        lambda key, hyper, data: jnp.zeros(()),
        loss,
        optim.sgd(),
        data={"inputs": inputs, "targets": 3 * inputs},
        batch_size=8,
    )
    state, values = train(made, 100, {"learning_rate": 0.1})
    assert seen[0] == {"inputs": (8,), "targets": (8,)}
    assert float(state.params) == pytest.approx(3.0, rel=1e-4)
    assert evaluated(made, state, values).keys() == {"train/loss"}
    assert seen[-1] == {"inputs": (50,), "targets": (50,)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hyper": {"learning_rate": Range(0.0)}}, r"both read \['learning_rate'\]"),
        ({"batch_size": 4}, "batches need data of equally many rows"),
        ({"data": np.array([1.0, np.inf]), "batch_size": 1}, "data must be finite in float32, but row 1 holds inf"),
        ({"data": np.ones(3), "batch_size": 4}, r"batch_size must be in \[1, 3\]"),
        ({"data": np.ones(3), "batch_size": 2, "problem": lambda *_: ()}, "leave one of the two out"),
    ],
)
def test_descents_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learners.descent(lambda *_: jnp.ones(2), lambda *_: 0.0, optim.sgd(), **options)


def test_a_loss_that_is_no_number_is_refused():
    made = learners.descent(lambda *_: jnp.ones(2), lambda key, hyper, data, params: params, optim.sgd())
    with pytest.raises(ValueError, match=r"the loss must be one number, got shape \(2,\)"):
        train(made, 1, {"learning_rate": 0.1})


def test_what_is_computed_once_needs_no_training_and_no_data(devices):
    def make_learner(config, num_steps):
        return learners.computed(
            lambda key, hyper, data: {"draw/square": hyper["scale"] * jax.random.normal(key) ** 2},
            hyper={"scale": Range(0.0)},
        )

    rows = finished(
        grid(hyper={"scale": (1.0, 2.0)}, seeds=2), devices, make_learner=make_learner, num_steps=0, num_evals=1
    )
    draw = float(jax.random.normal(keys.of_run(1, keys.INIT)))
    assert float(metric(rows, (2.0, 1), "draw/square")[0]) == pytest.approx(2 * draw**2, rel=1e-6)


def test_a_learner_may_have_no_data_at_all(devices):
    def update(key, hyper, data, weight):
        return weight * (1 - hyper["learning_rate"]), {"batch/loss": weight**2}

    made = Learner(
        (), {"learning_rate": Range(0.0)}, lambda *_: jnp.float32(1), update, lambda *args: {"test/loss": args[-1] ** 2}
    )
    points = grid(hyper={"learning_rate": (0.1,)}, seeds=1)
    rows = finished(points, devices, make_learner=lambda config, num_steps: made, num_steps=4, num_evals=1)
    assert float(metric(rows, (0.1, 0), "test/loss")[-1]) == pytest.approx(0.430467, rel=1e-5)


def test_an_evaluation_extends_anothers_and_shadows_none_of_it():
    made = supervised(Dataset(Split(INPUTS, LABELS)))
    more = learners.measuring(made, lambda key, hyper, data, state: {"output/bias": state.params["output"]["bias"]})
    state, values = train(more, 0, {"learning_rate": 0.1})
    assert evaluated(more, state, values).keys() == {"train/loss", "train/accuracy", "output/bias"}
    twice = learners.measuring(made, lambda *_: {"train/loss": jnp.zeros(())})
    with pytest.raises(ValueError, match="already measures train/loss"):
        evaluated(twice, state, values)


# Two players


def dirac_gan(*, simultaneous, critic_steps=1, penalty=0.0):
    """A generator that is one point, a critic that is linear; the data are the point 0.

    Source: Mescheder, Geiger and Nowozin, "Which Training Methods for GANs do actually Converge?", 2018, section 2,
    https://arxiv.org/abs/1801.04406.
    """

    def generator_loss(key, hyper, batch, params):
        return -params.generator * params.critic

    def critic_loss(key, hyper, batch, params):
        return params.generator * params.critic + 0.5 * penalty * params.critic**2

    return learners.adversarial(
        lambda key, hyper, data: Players(jnp.ones(()), jnp.zeros(())),
        Players(generator_loss, critic_loss),
        Players(
            optim.renamed(optim.sgd(), learning_rate="generator_rate", momentum="generator_momentum"),
            optim.renamed(optim.sgd(), learning_rate="critic_rate", momentum="critic_momentum"),
        ),
        evaluate=lambda key, hyper, data, state: {
            "gan/radius": jnp.hypot(state.params.generator, state.params.critic),
            "gan/critic": state.params.critic,
        },
        critic_steps=critic_steps,
        simultaneous=simultaneous,
    )


@pytest.mark.usefixtures("x64")
def test_players_that_move_at_once_spiral_out_by_the_factor_of_theory():
    """Each step multiplies the radius by sqrt(1 + rate^2) where both losses are linear."""
    made = dirac_gan(simultaneous=True)
    state, values = train(made, 100, {"generator_rate": 0.1, "critic_rate": 0.1})
    assert float(evaluated(made, state, values)["gan/radius"]) == pytest.approx((1 + 0.1**2) ** 50, rel=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("critic_steps", [1, 3])
def test_players_that_take_turns_follow_their_recursion_at_their_own_rates(critic_steps):
    made = dirac_gan(simultaneous=False, critic_steps=critic_steps, penalty=0.5)
    state, values = train(made, 10, {"generator_rate": 0.2, "critic_rate": 0.05})
    generator, critic = 1.0, 0.0
    for _ in range(10):
        for _ in range(critic_steps):
            critic -= 0.05 * (generator + 0.5 * critic)
        generator += 0.2 * critic
    assert float(state.params.generator) == pytest.approx(generator, rel=1e-9)
    assert float(evaluated(made, state, values)["gan/critic"]) == pytest.approx(critic, rel=1e-9)


def test_each_step_of_the_critic_has_a_batch_of_its_own():
    data = np.arange(1000, dtype=np.float32)
    made = learners.adversarial(
        lambda key, hyper, data: Players(jnp.zeros(()), jnp.zeros(())),
        Players(
            lambda key, hyper, batch, params: 0.0 * params.generator, lambda *args: args[3].critic * args[2].mean()
        ),
        Players(optim.renamed(optim.sgd(), learning_rate="generator_rate"), optim.sgd()),
        evaluate=lambda *args: {"gan/critic": args[3].params.critic},
        data=data,
        batch_size=4,
        critic_steps=5,
    )
    values = {name: legal.default for name, legal in made.hyper.items()} | {"learning_rate": 1.0, "generator_rate": 1.0}
    data = jnp.asarray(data)
    drawn = made.draw(KEY, values, data)
    assert drawn.rows.shape == (6, 4)
    assert len(np.unique(drawn.rows)) > 16
    state, _ = made.update(drawn, values, data, made.init(KEY, values, data))
    assert float(state.params.critic) == pytest.approx(-float(data[drawn.rows[:5]].mean(axis=1).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": Players(optim.sgd(), optim.sgd())}, "both optimizers read 'learning_rate'; .* optim.renamed"),
        (
            {
                "optimizers": Players(
                    optim.renamed(optim.momentum(), learning_rate="a"), optim.renamed(optim.sgd(), learning_rate="b")
                )
            },
            "both optimizers read 'momentum'",
        ),
        ({"critic_steps": 0}, "critic_steps must be an integer of at least 1, got 0"),
        ({"critic_steps": 2, "simultaneous": True}, "one step each, got critic_steps=2"),
    ],
)
def test_games_that_cannot_be_played_are_refused(options, message):
    own = optim.renamed(optim.sgd(), learning_rate="generator_rate")
    arguments = {"optimizers": Players(own, optim.sgd()), **options}
    with pytest.raises(ValueError, match=message):
        learners.adversarial(lambda *_: (1.0, 1.0), Players(None, None), evaluate=lambda *_: {}, **arguments)


def test_an_optimizer_is_renamed_and_gets_defaults():
    plain, other = optim.adam(), optim.renamed(optim.adam(), learning_rate="critic_rate")
    assert other.hyper.keys() == plain.hyper.keys() - {"learning_rate"} | {"critic_rate"}
    values = {name: legal.default for name, legal in plain.hyper.items()}
    weights = jnp.ones(3)
    moved = []
    for optimizer, rate in ((plain, "learning_rate"), (other, "critic_rate")):
        tx = optimizer.make_tx(values | {rate: 0.5})
        moved.append(tx.update(2 * weights, tx.init(weights), weights)[0])
    np.testing.assert_array_equal(*moved)
    assert optim.with_defaults(plain, learning_rate=0.5).hyper["learning_rate"].default == 0.5
    with pytest.raises(ValueError, match="has no rate; it has b1"):
        optim.renamed(plain, rate="critic_rate")
    with pytest.raises(ValueError, match="two numbers would have the same name"):
        optim.renamed(plain, b1="b2")
    with pytest.raises(ValueError, match="has no rate"):
        optim.with_defaults(plain, rate=0.5)
    with pytest.raises(ValueError, match=r"b1 must be a number in \[0, 1\), got 1"):
        optim.with_defaults(plain, b1=1)


# Phases


def digits(optimizer):
    model = models.mlp(width=8, num_layers=2, num_outputs=10)
    return learners.supervised(model, losses.softmax_cross_entropy, optimizer, bundled.load("digits"), batch_size=16)


def test_the_second_phase_goes_on_with_the_weights_of_the_first(devices):
    """Ten steps by SGD, then ten by another rate: the first phase is the first learner's, to the bit."""
    second_rate = optim.renamed(optim.sgd(), learning_rate="second_rate")

    def make_learner(config, num_steps):
        return learners.in_phases(digits(optim.sgd()), digits(second_rate), at=10)

    rates = {"learning_rate": (0.1,), "second_rate": (0.0, 0.1)}
    rows = finished(grid(hyper=rates, seeds=2), devices, make_learner=make_learner, num_steps=20, num_evals=4)
    alone = finished(
        grid(hyper={"learning_rate": (0.1,)}, seeds=2),
        devices,
        make_learner=lambda config, num_steps: digits(optim.sgd()),
        num_steps=20,
        num_evals=4,
    )
    for seed in range(2):
        still, moving = (metric(rows, (0.1, rate, seed), "test/loss") for rate in (0.0, 0.1))
        whole = metric(alone, (0.1, seed), "test/loss")
        np.testing.assert_allclose(still[:3], whole[:3], rtol=1e-5)
        np.testing.assert_array_equal(still[3:], still[2])  # at rate 0 the weights stay as they were handed over
        np.testing.assert_allclose(moving, whole, rtol=1e-5)  # SGD has no memory: the change changes nothing


def test_only_the_phase_whose_turn_it_is_computes():
    counts = dict.fromkeys(("first update", "second update", "first evaluate", "second evaluate"), 0)

    def counted(name, weight):
        def count(weight):
            counts[name] += 1
            return np.asarray(weight)

        return jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32), weight, vmap_method="broadcast_all")

    def counting(name):
        made = learners.descent(
            lambda *_: jnp.ones(()),
            lambda key, hyper, data, weight: 0.5 * weight**2,
            optim.with_defaults(optim.sgd(), learning_rate=0.5),
        )

        def update(drawn, hyper, data, state):
            return made.update(drawn, hyper, data, state._replace(params=counted(f"{name} update", state.params)))

        def evaluate(key, hyper, data, state):
            return {"train/weight": counted(f"{name} evaluate", state.params)}

        return made._replace(update=update, evaluate=evaluate)

    made = learners.in_phases(counting("first"), counting("second"), at=3)
    values = {name: legal.default for name, legal in made.hyper.items()}
    states = jax.vmap(lambda key: made.init(key, values, made.data))(jax.random.split(KEY, 4))
    step = jax.jit(jax.vmap(lambda state: made.step(KEY, values, made.data, state)[0]))
    evaluate = jax.jit(jax.vmap(lambda state: made.evaluate(KEY, values, made.data, state)))
    for index in range(1, 6):
        states = step(states)
        np.testing.assert_allclose(evaluate(states)["train/weight"], 0.5**index)
    assert counts == {"first update": 3, "second update": 2, "first evaluate": 2, "second evaluate": 3}


def test_phases_that_do_not_fit_are_refused():
    first, idle = digits(optim.sgd()), learners.computed(lambda *_: {})
    with pytest.raises(ValueError, match="at must be an integer of at least 1, got 0"):
        learners.in_phases(first, first, at=0)
    with pytest.raises(ValueError, match="no update"):
        learners.in_phases(first, idle, at=1)
    with pytest.raises(ValueError, match="both learners read 'momentum' with different ranges"):
        learners.in_phases(first, digits(optim.momentum()), at=1)
    other = learners.measuring(first, lambda *_: {"more/zero": jnp.zeros(())})
    unlike = learners.in_phases(first, other, at=1)
    state, values = train(unlike, 1, {"learning_rate": 0.1})
    with pytest.raises(ValueError, match="must measure the same"):
        evaluated(unlike, state, values)


def test_what_is_trained_once_a_seed_is_what_a_sweep_trains_and_every_point_begins_there(devices):
    rows = finished(grid(hyper={"learning_rate": (0.1,)}, seeds=range(3, 5)), devices, num_steps=20)
    trained = learners.once_a_seed(small_learner({}, 20), range(3, 5), 20, {"learning_rate": 0.1})

    def make_learner(config, num_steps):
        return learners.starting_from(small_learner({}, num_steps), trained)

    points = grid(hyper={"learning_rate": (0.0, 0.01)}, seeds=range(3, 6))
    after = finished(points, devices, make_learner=make_learner, num_steps=20)
    for rate in (0.0, 0.01):
        for seed in range(3, 5):
            reached = metric(rows, (0.1, seed), "test/loss")[-1]
            assert metric(after, (rate, seed), "test/loss")[0] == pytest.approx(reached, rel=1e-5)
        assert np.isnan(metric(after, (rate, 5), "test/loss")).all()  # a seed that was not trained
    assert metric(after, (0.01, 3), "train/loss")[-1] < metric(after, (0.01, 3), "train/loss")[0]


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({}, r"learning_rate must be a number in \[0, inf\), got None"),
        ({"learning_rate": 0.1, "rate": 1.0}, r"not \['rate'\]"),
        ({"learning_rate": 1e30}, "seed 3 leaves the finite numbers within 20 steps"),
    ],
)
def test_what_cannot_be_trained_once_a_seed_is_refused(hyper, message):
    with pytest.raises(ValueError, match=message):
        learners.once_a_seed(digits(optim.sgd()), (3,), 20, hyper)
