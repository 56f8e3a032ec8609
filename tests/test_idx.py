"""Image files: the published ones are read, everything else is refused with a sentence."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlexp.data import idx
from dlexp.data.idx import DataError
from tests.conftest import data_dir


def encoded(array, *, kind=8, shape=None, axes=None):
    shape = array.shape if shape is None else shape
    header = bytes([0, 0, kind, len(shape) if axes is None else axes])
    return header + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def written(path, content, *, zipped=True):
    path.write_bytes(gzip.compress(content) if zipped else content)
    return path


IMAGES = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_arrays_of_any_shape_are_read_back(tmp_path_factory, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = written(tmp_path_factory.mktemp("idx") / "a.gz", encoded(array))
    np.testing.assert_array_equal(idx.read_idx(path), array)


@pytest.mark.parametrize(
    ("content", "zipped", "message"),
    [
        (encoded(IMAGES), False, "no whole gzip file"),
        (gzip.compress(encoded(IMAGES))[:-9], False, "no whole gzip file"),
        (b"", True, "no IDX file"),
        (encoded(IMAGES, kind=13), True, "no IDX file of bytes: it begins with 00000d03"),
        (b"PK\3\4" + encoded(IMAGES), True, "no IDX file"),
        (encoded(IMAGES, axes=9), True, "no IDX file"),
        (encoded(IMAGES)[:9], True, "ends within its header"),
        (encoded(IMAGES)[:-1], True, r"holds \(2, 3, 3\) = 18 bytes and holds 17"),
        (encoded(IMAGES) + b"x", True, "and holds 19"),
        (encoded(IMAGES, shape=(2**32 - 1, 2**32 - 1, 2**32 - 1)), True, "and holds 18"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, zipped, message):
    path = written(tmp_path / "images.gz", content, zipped=zipped)
    with pytest.raises(DataError, match=message) as caught:
        idx.read_idx(path)
    assert str(path) in str(caught.value)


def local_set(folder, monkeypatch, images=IMAGES, labels=(3, 9)):
    """A complete tiny set in a data folder, its checksums made the published ones."""
    (folder / "mnist").mkdir(parents=True)
    contents = [encoded(images), encoded(np.array(labels, np.uint8))] * 2
    sums = []
    for name, content in zip(idx._FILES, contents, strict=True):
        path = written(folder / "mnist" / name, content)
        sums.append(hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(idx.SOURCES, "mnist", idx.Source("http://localhost:1/", tuple(sums)))
    monkeypatch.setenv("DLEXP_DATA_DIR", str(folder))
    idx.load.cache_clear()


def test_a_set_is_split_into_train_validation_and_test(tmp_path, monkeypatch):
    local_set(tmp_path, monkeypatch)
    data = idx.load("mnist", num_validation=1)
    assert [split.inputs.shape for split in data] == [(1, 3, 3), (1, 3, 3), (2, 3, 3)]
    assert data.train.inputs.dtype == np.uint8
    assert data.test.labels.tolist() == [3, 9]


@pytest.mark.parametrize(
    ("labels", "message"), [((3, 10), "has label 10, but classes are 0 to 9"), ((3,), "do not fit images")]
)
def test_labels_that_cannot_be_are_named(tmp_path, monkeypatch, labels, message):
    local_set(tmp_path, monkeypatch, labels=labels)
    with pytest.raises(DataError, match=message):
        idx.load("mnist", num_validation=1)


def test_a_file_with_another_checksum_is_refused(tmp_path, monkeypatch):
    local_set(tmp_path, monkeypatch)
    path = tmp_path / "mnist" / idx._FILES[0]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="is not the published file: its MD5 is"):
        idx.load("mnist", num_validation=1)


def test_a_path_that_leaves_the_data_folder_is_refused(tmp_path, monkeypatch):
    local_set(tmp_path / "data", monkeypatch)
    inside = tmp_path / "data/mnist" / idx._FILES[1]
    outside = inside.rename(tmp_path / "elsewhere.gz")
    inside.symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the data folder"):
        idx.load("mnist", num_validation=1)


@pytest.mark.parametrize("failure", [OSError("no network"), ValueError("MD5 hash of downloaded file does not match")])
def test_a_failed_download_names_file_place_and_checksum(tmp_path, monkeypatch, failure):
    import pooch

    def retrieve(*args, **kwargs):
        raise failure

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setenv("DLEXP_DATA_DIR", str(tmp_path))
    idx.load.cache_clear()
    with pytest.raises(DataError, match=r"put it into DATA_DIR/mnist/ .* its MD5 is f68b3c2d"):
        idx.load("mnist")


def test_an_interrupted_download_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    """A real download of half a file from a local server."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Half(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Half)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(idx.SOURCES, "mnist", idx.SOURCES["mnist"]._replace(url=url))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("DLEXP_DATA_DIR", str(tmp_path))
        idx.load.cache_clear()
        with pytest.raises(DataError, match="could not be downloaded"):
            idx.load("mnist")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "plain.npz", x=np.arange(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], object))
    np.testing.assert_array_equal(idx.read_npz(tmp_path / "plain.npz", "x"), [0, 1, 2])
    for path, name in (("objects.npz", "x"), ("plain.npz", "y"), ("missing.npz", "x")):
        with pytest.raises(DataError, match=path):
            idx.read_npz(tmp_path / path, name)
    (tmp_path / "plain.npz").write_bytes(b"PK\3\4 no zip")
    with pytest.raises(DataError, match="cannot be read"):
        idx.read_npz(tmp_path / "plain.npz", "x")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_published_files_are_read(name, monkeypatch):
    monkeypatch.setenv("DLEXP_DATA_DIR", str(Path(data_dir())))
    idx.load.cache_clear()
    data = idx.load(name)
    assert [len(split.inputs) for split in data] == [55_000, 5_000, 10_000]
    counts = sum(np.bincount(split.labels, minlength=10) for split in data[:2])
    expected = {
        "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "fashion_mnist": [6000] * 10,
    }
    assert counts.tolist() == expected[name]


def test_other_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match="there are mnist, fashion_mnist, kmnist"):
        idx.load("imagenet")
    with pytest.raises(ValueError, match="num_validation must be in"):
        idx.load("mnist", num_validation=60_000)
