"""The machine a sweep runs on: its devices, their memory, the compile cache, and what is noted of it all."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import dlexp
from dlexp import keys
from dlexp.ops import compiler

_UNKNOWN_MEMORY = 8 * 2**30
_REFUSED = {  # setting of JAX -> the only value under which runs are what their ids say, and what another does
    "jax_disable_jit": (False, "the engine trains compiled programs"),
    "jax_threefry_partitionable": (True, "every run would have other random numbers"),
    "jax_random_seed_offset": (0, "every run would have the random numbers of another seed"),
}


def start_devices() -> list[jax.Device]:
    """Returns the local devices; on a CPU that is not in use yet, one device a core."""
    with contextlib.suppress(RuntimeError):  # the backend is up already, as in a notebook: take what there is
        jax.config.update("jax_num_cpu_devices", num_cores())
        compiler.allow_one_pass()
    return jax.local_devices()


def mesh(devices: list[jax.Device]) -> jax.sharding.Mesh:
    """Returns the devices in a row, over which the axis `run` is spread."""
    # Axes are explicit unless said otherwise, and then refuse plain indexing.
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("run",), axis_types=axis_types, devices=devices)


def set_precision(devices: list[jax.Device], precision: str) -> None:
    """Sets how matrices are multiplied from now on; accelerators would take less than float32 if nobody asked."""
    # A CPU multiplies in float32 anyway.
    asked = None if precision == "float32" and devices[0].platform == "cpu" else precision
    jax.config.update("jax_default_matmul_precision", asked)


def check_settings() -> None:
    """Raises where JAX was told something that leaves runs untrained or changes what they are.

    Raises:
      ValueError: with the setting, and what to do.
    """
    for name, (only, otherwise) in _REFUSED.items():
        if (value := getattr(jax.config, name, only)) != only:
            raise ValueError(f"{name.upper()}={value!r} cannot be used: {otherwise}; unset it, or set it to {only}")


@contextlib.contextmanager
def usual_promotion() -> Iterator[None]:
    """A context in which numbers of different types and ranks meet as JAX has it unless it is told otherwise."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_memory(devices: list[jax.Device]) -> float:
    """Returns the bytes of memory of one device: of a CPU device, its share of the machine's."""
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    if devices[0].platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    return _UNKNOWN_MEMORY


def cache_folder() -> Path:
    """Returns where programs and their pace are kept: the folder that DLEXP_CACHE_DIR names, else the user's cache."""
    import pooch

    return Path(os.environ.get("DLEXP_CACHE_DIR", "") or pooch.os_cache("dlexp"))


def enable_compile_cache() -> None:
    """Keeps compiled programs on disk, in the user's cache folder, unless JAX was told where already."""
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def provenance(devices: list[jax.Device]) -> dict[str, Any]:
    """Returns what it takes to train the same numbers again: versions, devices, precision, commit."""
    config: Any = jax.config
    packages = ("dlexp", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{name: _installed_version(name) for name in packages},
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "machine": platform.machine(),
        "num_devices": len(devices),
        "matmul_precision": config.jax_default_matmul_precision or "default",
        "float": str(jnp.result_type(float)),
        "random_numbers": keys.RANDOM_NUMBERS,
        "git_commit": _git_commit(),
    }


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return dlexp.__version__ if package == "dlexp" else "unknown"


def _git_commit() -> str:
    """The commit of the checkout that dlexp is imported from, `-dirty` where files differ from it."""
    checkout = Path(dlexp.__file__).parents[1]
    if not (checkout / ".git").exists():
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"
