"""The MNIST family from IDX files: in a local folder, else downloaded once with a checksum.

A file is read only if it is the published one, byte for byte, and what it says of itself is true.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlexp.data.splits import Dataset, Split, frozen

NUM_CLASSES = 10
_MAX_BYTES = 2**30  # more than any file of the family; a header that asks for more is damaged
_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


class DataError(ValueError):
    """A data file that is not there or not what it should be; the message names it and says what to do."""


class Source(NamedTuple):
    """Where a data set is published, and the MD5 of its four files as published."""

    url: str
    md5: tuple[str, str, str, str]


SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion_mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "kmnist": Source(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        (
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
}


@cache
def load(name: str, *, num_validation: int = 5000) -> Dataset:
    """Returns MNIST, Fashion-MNIST or KMNIST: images uint8 `[example, 28, 28]`, labels int32, split as published.

    Validation is the last `num_validation` of the 60,000 training examples. The arrays are read-only.

    Args:
      name: mnist, fashion_mnist or kmnist.
      num_validation: examples held out of the published training set.

    Raises:
      DataError: where a file is missing and cannot be downloaded, or is damaged.
      ValueError: on another name or size.
    """
    if name not in SOURCES:
        raise ValueError(f"load: no image set named {name!r}; there are {', '.join(SOURCES)}")
    if not 0 < num_validation < 60_000:
        raise ValueError(f"load: num_validation must be in [1, 59999], got {num_validation}")
    paths = [_located(name, file, md5) for file, md5 in zip(_FILES, SOURCES[name].md5, strict=True)]
    train, test = _split(*paths[:2]), _split(*paths[2:])
    first, last = slice(None, -num_validation), slice(-num_validation, None)
    return frozen(Dataset(Split(*(array[first] for array in train)), Split(*(array[last] for array in train)), test))


def read_idx(path: Path) -> np.ndarray:
    """Returns the array in a gzipped IDX file of unsigned bytes.

    Format: http://yann.lecun.com/exdb/mnist: two zero bytes, type 8, number of dimensions, each size as a big-endian
    32-bit integer, then the bytes.

    Raises:
      DataError: where the file is damaged: not gzip, cut short, another type, sizes that do not fit its length.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no whole gzip file ({error}); replace it with the published one") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        raise DataError(f"{path} is no IDX file of bytes: it begins with {content[:4].hex()}; replace it")
    num_axes = content[3]
    if len(content) < 4 + 4 * num_axes:
        raise DataError(f"{path} ends within its header; replace it with the published one")
    shape = struct.unpack(f">{num_axes}I", content[4 : 4 + 4 * num_axes])
    size, there = math.prod(shape), len(content) - 4 - 4 * num_axes
    if size != there:
        raise DataError(f"{path} says it holds {shape} = {size} bytes and holds {there}; replace it")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def read_npz(path: Path, name: str) -> np.ndarray:
    """Returns one array of an npz file; pickled objects, which could run code, are refused.

    Raises:
      DataError: where the file is damaged, has no such array, or holds objects.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays[name]
    except KeyError as error:
        raise DataError(f"{path} has no array named {name!r}") from error
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as plain arrays ({error}); replace it") from error


def _split(images_path: Path, labels_path: Path) -> Split:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{labels_path}: {labels.shape} labels do not fit images of shape {images.shape}; replace it")
    if labels.max(initial=0) >= NUM_CLASSES:
        raise DataError(f"{labels_path} has label {labels.max()}, but classes are 0 to {NUM_CLASSES - 1}; replace it")
    return Split(images, labels.astype(np.int32))


def _located(name: str, file: str, md5: str) -> Path:
    """The file in the user's folder, or downloaded; in either case the published one."""
    folder = os.environ.get("DLEXP_DATA_DIR")
    path = Path(folder, name, file) if folder else None
    if path is None or not path.exists():
        return _downloaded(name, file, md5)
    if not path.resolve().is_relative_to(Path(folder or "").resolve()):
        raise DataError(f"{path} leads out of the data folder {folder}; put the file itself there")
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{path} is not the published file: its MD5 is {found}, it should be {md5}; replace it")
    return path


def _downloaded(name: str, file: str, md5: str) -> Path:
    import pooch

    cache_folder = pooch.os_cache("dlexp") / name
    url = SOURCES[name].url + file
    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=file, path=cache_folder))
    except Exception as error:  # no network, a cut connection, a wrong checksum: each library has its own
        raise DataError(
            f"{name}/{file} could not be downloaded from {url} ({type(error).__name__}); put it into "
            f"DATA_DIR/{name}/ and name that folder with --data_dir or DLEXP_DATA_DIR; its MD5 is {md5}"
        ) from None  # what the libraries raised on the way says nothing more, in a hundred lines
