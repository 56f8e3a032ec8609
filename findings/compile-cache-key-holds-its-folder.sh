#!/usr/bin/env bash
# One would expect a compile cache to be relocatable: the same function, on the same machine, under the same versions,
# has the same key in whatever folder the entries lie, so that a cache may be copied for other workers or into an image.
# What happens: on a CPU, with JAX's defaults, the key of JAX's persistent compilation cache depends on the path of the
# cache's folder. A copied cache holds the right file and is missed. With jax_persistent_cache_enable_xla_caches="none"
# the keys are equal: by default XLA is given sub-caches inside the folder, and their paths are compile options.
# Who is bitten: CI that keeps caches between paths, parallel test workers with a cache each, container images.
# Source: JAX, Persistent compilation cache, https://docs.jax.dev/en/latest/persistent_compilation_cache.html
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 2>/dev/null
cat > "$folder/keys.py" <<'PYTHON'
import os
import sys

import jax

cache, xla_caches = sys.argv[1:]
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
if xla_caches != "default":
    jax.config.update("jax_persistent_cache_enable_xla_caches", xla_caches)


def cube(x):
    return x**3


jax.jit(cube)(2.0).block_until_ready()
print(next(name for name in sorted(os.listdir(cache)) if name.startswith("jit_cube") and name.endswith("-cache")))
PYTHON
keys() { for name in one other; do JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/keys.py" "$folder/$1/$name" "$1"; done; }
mkdir -p "$folder"/{default,none}/{one,other}
"$folder/venv/bin/python" -c 'import jax; print("jax", jax.__version__)'
default=$(keys default)
none=$(keys none)
printf 'by default, two folders:\n%s\nwith xla_caches="none":\n%s\n' "$default" "$none"
[ "$(sort -u <<<"$default" | wc -l)" = 2 ] || { echo "changed: the keys are equal by default"; exit 1; }
[ "$(sort -u <<<"$none" | wc -l)" = 1 ] || { echo "changed: the keys differ even without XLA's caches"; exit 1; }
echo "as described: the key of the same program depends on the cache's folder"
