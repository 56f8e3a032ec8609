#!/usr/bin/env bash
# One would expect a compiled JAX function whose outputs have the shapes and shardings of its inputs to take its own
# outputs again: that is how a train step is looped over on several devices.
# What happens: under shard_map with out_specs P("run"), an output with an axis of size 0 (an adapter of rank 0, a table
# without columns) leaves with the sharding P(), while its input is required to have P("run"). The second call of the
# compiled function raises ValueError about input shardings that disagree. An output that is not empty keeps P("run").
# Who is bitten: ahead-of-time compiled loops over states in which some leaf is empty, on two devices or more.
# Remedy: require P() of leaves with size 0, or name out_shardings of jit as well.
# Source: JAX, Ahead-of-time lowering and compilation, https://docs.jax.dev/en/latest/aot.html
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 2>/dev/null
cat > "$folder/twice.py" <<'PYTHON'
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("run",), axis_types=(AxisType.Auto,))
over_runs = NamedSharding(mesh, PartitionSpec("run"))
state = jax.device_put({"full": np.ones((4, 3)), "empty": np.ones((4, 0))}, over_runs)
spec = {"mesh": mesh, "in_specs": PartitionSpec("run"), "out_specs": PartitionSpec("run")}
step = jax.jit(jax.shard_map(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), **spec))
compiled = step.lower(state).compile()
made = compiled(state)
print("jax", jax.__version__)
print({name: str(leaf.sharding.spec) for name, leaf in made.items()})
try:
    compiled(made)
except ValueError as error:
    print("second call:", str(error).splitlines()[0])
    raise SystemExit(0 if "shardings that disagree" in str(error) else 1)
raise SystemExit("changed: the second call works")
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/twice.py"
echo "as described: the empty leaf came back with another sharding"
