"""Writes saved results of an older format in the present one, without training: `python -m dlexp.results.convert DIR`.

Older results are read and trained on without it. Other readers want it: see `dlexp.results.columns`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlexp.results import columns, folders, store
from dlexp.results.files import ResultsError
from dlexp.results.table import grid_of


def convert(root: Path) -> Iterator[tuple[Path, int]]:
    """Yields each folder of results in `root` and how many of its files were written anew.

    Raises:
      ResultsError: where there are no results, a file is damaged, or a folder is in use or of a newer dlexp.
    """
    found = sorted(path.parent for path in root.rglob(folders.MANIFEST))
    if not found:
        raise ResultsError(f"{root} holds no results; name a folder that was given as --out")
    for folder in found:
        manifest = folders.read_manifest(folder)
        if manifest is not None:
            yield folder, _convert(folder, manifest["experiment"], manifest["version"])


def _convert(folder: Path, experiment: str, version: int) -> int:
    """The manifest first: an older dlexp then refuses the folder from the first new file on."""
    with folders.claimed(folder, experiment, version) as manifest:
        folders.write_manifest(folder, manifest)
        before = set(folder.glob("*/*.parquet"))
        for name, declared in manifest["sweeps"].items():
            store.conform(folder / name, columns.of_grid(grid_of(declared["blocks"])))
        return len(set(folder.glob("*/*.parquet")) - before)


def main(arguments: Sequence[str]) -> int:
    """Converts the folders that the arguments name; returns the exit status."""
    if not arguments:
        print("name the folders to convert: python -m dlexp.results.convert DIR", file=sys.stderr)
        return 2
    try:
        for argument in arguments:
            for folder, num_files in convert(Path(argument)):
                print(f"{folder}: {num_files} files written anew")
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
