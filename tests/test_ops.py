"""Operations as they are computed fast: equal numbers, in another order, on the platform at hand."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlexp import models, ops, optim
from dlexp.ops import compiler, storage
from dlexp.ops.choices import recording_choices, with_choices

KEY = jax.random.key(0)
SHARED = {"seed": "shared"}
cpu_only = pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere the plain form is computed")


def values(of):
    return {name: legal.default or 0.01 for name, legal in of.hyper.items()}


def marked(kernel):
    return {"first": ops.FirstLayer(kernel=kernel, bias=jnp.arange(48.0)), "output": {"kernel": jnp.ones((48, 10))}}


@cpu_only
def test_narrow_matrices_are_stored_by_column_and_keep_their_numbers():
    shapes = {"kernel": (32, 10), "stacked": (3, 16, 2), "wide": (16, 16), "small": (15, 10), "bias": (10,)}
    leaves = {name: jax.random.normal(KEY, (4, *shape)) for name, shape in shapes.items()}
    leaves["count"] = jnp.arange(4 * 16).reshape(4, 16, 1)
    body = jax.jit(jax.vmap(storage.body(lambda index, tree: tree), (None, 0)))
    jax.tree.map(np.testing.assert_array_equal, body(0, leaves), leaves)
    assert body.lower(0, leaves).as_text().count("LayoutConstraint") == 2


@cpu_only
def test_first_kernels_are_transposed_around_a_loop_and_not_for_its_steps():
    tree = marked(jnp.arange(8 * 48.0).reshape(8, 48))
    assert storage.enter(tree) is tree
    with with_choices(SHARED):
        there = storage.enter(tree)
        np.testing.assert_array_equal(there["first"]["kernel"], tree["first"]["kernel"].T)
        assert there["first"]["bias"] is tree["first"]["bias"]
        jax.tree.map(np.testing.assert_array_equal, storage.leave(there), tree)

        def step(index, tree):
            assert tree["first"]["kernel"].shape == (8, 48)
            return jax.tree.map(lambda leaf: leaf + index, tree)

        there = jax.lax.fori_loop(0, 3, storage.body(step), there)
        jax.tree.map(lambda after, before: np.testing.assert_array_equal(after, before + 3), storage.leave(there), tree)


@cpu_only
def test_only_the_kernel_of_an_mlps_first_layer_is_stored_transposed_and_the_optimizers_numbers_for_it():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, inputs, hyper, key, train):
            return nn.Dense(3, name="first")(inputs)

    shapes = {}
    ours = models.mlp(width=48, num_layers=3, num_outputs=10, initializer="he")
    deep_block = models.mlp(width=48, num_layers=3, num_outputs=10, block=models.dense_block)
    for name, model in {"ours": ours, "own block": deep_block, "own": models.from_linen(Own())}.items():
        params = model.init(KEY, values(model), jnp.ones((1, 8)))["params"]
        state = {"params": params, "opt": optim.adam().make_tx(values(optim.adam())).init(params)}
        with with_choices(SHARED):
            changed = jax.tree.map(lambda leaf, other: leaf.shape != other.shape, state, storage.enter(state))
        paths = [path for path, is_other in jax.tree_util.tree_leaves_with_path(changed) if is_other]
        shapes[name] = [jax.tree_util.keystr(path[-3:]) for path in paths]
    assert shapes == {"ours": ["['first']['Dense_0']['kernel']"] * 3, "own block": [], "own": []}


def test_a_marked_layer_reads_like_a_dictionary_and_keeps_its_paths():
    layer = ops.FirstLayer(kernel=1.0, bias=2.0)
    assert layer["kernel"] == 1.0
    assert {**layer} == {"bias": 2.0, "kernel": 1.0}
    plain = jax.tree_util.tree_leaves_with_path({"bias": 2.0, "kernel": 1.0})
    assert jax.tree_util.tree_leaves_with_path(layer) == plain
    assert type(jax.tree.map(lambda leaf: leaf + 1, layer)) is ops.FirstLayer


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["momentum", "rmsprop", "adam", "adamw"])
def test_optimizers_give_the_same_steps_on_kernels_that_are_stored_transposed(name):
    optimizer = optim.from_name(name)
    tx = optimizer.make_tx(values(optimizer))
    params = marked(jax.random.normal(KEY, (8, 48)))
    grads = jax.tree.map(lambda leaf: leaf**2 - 0.1, params)

    def two_steps():
        _, opt_state = tx.update(grads, tx.init(params), params)
        return tx.update(grads, opt_state, params)

    expected = two_steps()
    with with_choices(SHARED):
        jax.tree.map(np.testing.assert_array_equal, two_steps(), expected)


def test_a_wrapped_optimizer_of_the_users_own_is_computed_in_one_pass(devices):
    tx = ops.one_pass(optax.adam(0.1))
    params = {"w": jnp.ones((16, 32))}
    with recording_choices() as recorded:
        jax.eval_shape(tx.update, params, tx.init(params), params)
    assert recorded == {"optimizer": compiler.ways_to_update()}
    texts = []
    for way in compiler.ways_to_update():
        with with_choices({"optimizer": way}):
            texts.append(jax.jit(lambda *args: tx.update(*args)).lower(params, tx.init(params), params).as_text())
    assert [text.count("optimization_barrier") for text in texts] == [2, 0][-len(texts) :]


def test_an_embedding_of_time_and_features_goes_through_the_same_dense_layer():
    inputs, kernel = jax.random.normal(KEY, (4, 5, 6)), jax.random.normal(KEY, (6, 7))
    np.testing.assert_allclose(ops.dense(inputs, kernel), np.asarray(inputs) @ np.asarray(kernel), rtol=1e-5)


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(7, 3), (3, 7), (130, 70), (32, 3)])
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("axis", "first"), [(-1, False), (0, False), (0, True)])
def test_every_derivative_of_a_dense_product_is_the_products(num_inputs, num_outputs, axis, first):
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(5, num_inputs)), rng.normal(size=(num_inputs, num_outputs))
    along = rng.normal(size=inputs.shape), rng.normal(size=kernel.shape)

    def own(inputs, kernel):
        outputs = ops.dense(ops.to_feature_axis(inputs, axis), kernel, axis=axis, first=first)
        return ops.from_feature_axis(outputs, axis)

    def derivatives(product):
        def loss(*args):
            return jnp.sum(jnp.sin(product(*args)))

        def curvature(*args):
            return jax.jvp(jax.grad(loss, (0, 1)), args, along)[1]

        return [product(inputs, kernel), jax.grad(loss, 1)(inputs, kernel), *curvature(inputs, kernel)]

    for ours, theirs in zip(derivatives(own), derivatives(jnp.matmul), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@cpu_only
def test_functions_are_traced_for_the_platform_of_the_mesh_and_not_for_the_default_one():
    assert ops.platform() == "cpu"
    with compiler.tracing_for("gpu"), with_choices(SHARED):
        assert ops.platform() == "gpu"
        assert ops.feature_axis() == -1
        assert compiler.ways_to_update() == (compiler.PASSES,)
        assert compiler.compiler_options() == {}
        assert "custom_jvp" not in str(jax.make_jaxpr(ops.dense)(jnp.ones((2, 16)), jnp.ones((16, 3))))
    with with_choices(SHARED):
        assert ops.feature_axis() == 0


def test_slices_and_gradients_take_trees_of_inputs(monkeypatch):
    inputs = {"left": jnp.arange(100.0), "right": jnp.ones((100, 3))}

    def sums(tree):
        return {"sum": tree["left"] + tree["right"].sum(axis=1)}

    sizes = []
    sliced = ops.in_slices(lambda tree: sizes.append(len(tree["left"])) or sums(tree), inputs)
    np.testing.assert_array_equal(sliced["sum"], sums(inputs)["sum"])
    assert sizes == [50 if ops.platform() == "cpu" else 100]
    monkeypatch.setattr("dlexp.ops.batches._MANY", 0)
    gradient = ops.value_and_grad(lambda w, tree: ((w * sums(tree)["sum"]).mean(), ()), is_separable=True)
    with recording_choices() as recorded, with_choices({"batch": "quarters"} if ops.platform() == "cpu" else {}):
        (value, _), grad = gradient(2.0, inputs)
    assert recorded == ({"batch": ("whole", "quarters")} if ops.platform() == "cpu" else {})
    assert (float(value), float(grad)) == pytest.approx((105.0, 52.5))
