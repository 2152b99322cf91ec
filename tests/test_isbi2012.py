import hashlib
import http.server
import io
import os
import zipfile

import numpy as np
import pooch
import pytest
import tifffile

from unet_jax.data import isbi2012
from unet_jax.errors import InputError

# pooch leaves the connection of a failed download to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

DATA = os.environ.get("UNET_JAX_DATA")

VOLUMES = {
    "train-volume.tif": np.arange(5 * 8 * 9, dtype=np.uint16).astype(np.uint8).reshape(5, 8, 9),
    "train-labels.tif": np.full((5, 8, 9), 255, np.uint8),
    "test-volume.tif": np.ones((5, 8, 9), np.uint8),
}
VOLUMES["train-labels.tif"][:, :, 4] = 0  # a membrane between two cells


def tiff_bytes(pixels):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels)
    return file.getvalue()


FILES = {name: tiff_bytes(pixels) for name, pixels in VOLUMES.items()}


def zip_bytes(files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("challenge/readme.txt", "small and made up")
        for name, content in files.items():
            archive.writestr(f"challenge/{name}", content)
    return file.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and the checksums of the small files."""
    monkeypatch.delenv("UNET_JAX_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
    sha256 = {name: hashlib.sha256(pixels).hexdigest() for name, pixels in VOLUMES.items()}
    monkeypatch.setattr(isbi2012, "MD5", md5)
    monkeypatch.setattr(isbi2012, "PIXEL_SHA256", sha256)
    return tmp_path / "unet_jax" / "isbi2012"


@pytest.fixture
def serve(serve_file, monkeypatch):
    """Serves one file on the loopback interface as the challenge's address."""

    def start(content, **settings):
        address, requests = serve_file(content, **settings)
        monkeypatch.setattr(isbi2012, "ADDRESS", address)
        return requests

    return start


def refusal():
    with pytest.raises(InputError) as caught:
        isbi2012.read_isbi2012()
    text = str(caught.value)
    assert text.splitlines() == [text]
    return text


def assert_made_up_examples(examples):
    assert [example.name for example in examples] == [f"slice {k}" for k in range(5)]
    for index, example in enumerate(examples):
        image, drawing = VOLUMES["train-volume.tif"][index], VOLUMES["train-labels.tif"][index]
        np.testing.assert_array_equal(example.image, image, strict=True)
        labels = (drawing == 255).astype(np.int32)
        np.testing.assert_array_equal(example.labels, labels, strict=True)
        instances = labels.copy()
        instances[:, 5:] = 2
        np.testing.assert_array_equal(example.instances, instances, strict=True)


def test_download_happens_once_and_keeps_only_the_volumes(cache, serve):
    requests = serve(zip_bytes(FILES))
    assert_made_up_examples(isbi2012.read_isbi2012())
    assert_made_up_examples(isbi2012.read_isbi2012())
    assert len(requests) == 1
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == FILES


def test_own_copy_comes_before_the_download(cache, serve, tmp_path, monkeypatch):
    requests = serve(zip_bytes(FILES))
    own = tmp_path / "own" / "isbi2012"
    own.mkdir(parents=True)
    for name, content in FILES.items():
        (own / name).write_bytes(content)
    monkeypatch.setenv("UNET_JAX_DATA", str(tmp_path / "own"))
    assert_made_up_examples(isbi2012.read_isbi2012())
    assert not requests and not cache.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zip_bytes(FILES | {"train-labels.tif": FILES["test-volume.tif"]}), "MD5 of train-labels"),
        (zip_bytes({"train-volume.tif": FILES["train-volume.tif"]}), "holds no train-labels.tif"),
        (zip_bytes(FILES)[:-30], "not a complete zip file"),
        (zip_bytes(FILES)[:200], "not a complete zip file"),
        (b"<html>Please log in</html>", "not a complete zip file"),
    ],
)
def test_tampered_or_truncated_zip_leaves_nothing_behind(cache, serve, content, says):
    serve(content)
    text = refusal()
    assert text.startswith(isbi2012.ADDRESS) and says in text
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("byte", [0, 20])  # of the compressed data
def test_damage_inside_the_zip_leaves_nothing_behind(cache, serve, byte):
    content = bytearray(zip_bytes(FILES))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = archive.getinfo("challenge/test-volume.tif")
    content[member.header_offset + 30 + len(member.filename) + byte] ^= 0xFF
    serve(content)
    assert "not a complete zip file" in refusal()
    assert list(cache.iterdir()) == []


def assert_says_what_to_do(text, cache):
    assert text.startswith(f"{isbi2012.ADDRESS}: cannot be downloaded (")
    assert f"put {', '.join(FILES)} into {cache}, or run `make demo`" in text


def test_server_that_stops_halfway_leaves_nothing_behind(cache, serve):
    content = zip_bytes(FILES)
    serve(content[:300], declared=len(content))
    assert_says_what_to_do(refusal(), cache)
    assert list(cache.iterdir()) == []


def test_address_that_has_moved(cache, serve):
    serve(b"not here", status=404)
    text = refusal()
    assert "404" in text
    assert_says_what_to_do(text, cache)
    assert list(cache.iterdir()) == []


def test_unreachable_address(cache, serve, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), None) as server:
        port = server.server_port  # free again after this block
    monkeypatch.setattr(isbi2012, "ADDRESS", f"http://127.0.0.1:{port}/challenge.zip")
    assert_says_what_to_do(refusal(), cache)
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(cache):
    cache.parent.write_bytes(b"a file where a folder should be")
    assert_says_what_to_do(refusal(), cache)


def test_files_with_other_pixels_are_refused_wherever_they_come_from(cache):
    cache.mkdir(parents=True)
    for name in FILES:
        (cache / name).write_bytes(FILES["test-volume.tif"])
    text = refusal()
    assert text.startswith(f"{cache / 'train-volume.tif'}: SHA-256 of its pixels is ")
    assert isbi2012.PIXEL_SHA256["train-volume.tif"] in text


LABELS = np.where(np.arange(9) % 3, 255, 0).astype(np.uint8) + np.zeros((5, 8, 1), np.uint8)


def test_the_hidden_test_where_the_archive_holds_its_labels(cache, serve):
    serve(zip_bytes(FILES | {"test-labels.tif": tiff_bytes(LABELS)}))
    isbi2012.read_isbi2012()
    examples = isbi2012.read_isbi2012_test()
    assert [example.name for example in examples] == [f"slice {k}" for k in range(5)]
    for example in examples:
        np.testing.assert_array_equal(example.image, VOLUMES["test-volume.tif"][0])
        np.testing.assert_array_equal(example.labels, LABELS[0] == 255)
        assert example.instances.max() == 3


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "is missing. The organisers' archive"),
        (LABELS[:, :7], "are (5, 7, 9, 1), expected (5, 8, 9, 1) as in test-volume.tif"),
        (LABELS[:2], "are (2, 8, 9, 1), expected (5, 8, 9, 1)"),
        (np.where(np.arange(5)[:, None, None] == 3, 7, LABELS), "page 3 holds 7, expected 0 and"),
    ],
)
def test_hidden_test_without_usable_labels(cache, labels, says):
    cache.mkdir(parents=True)
    for name, content in FILES.items():
        (cache / name).write_bytes(content)
    if labels is not None:
        (cache / "test-labels.tif").write_bytes(tiff_bytes(labels.astype(np.uint8)))
    with pytest.raises(InputError) as caught:
        isbi2012.read_isbi2012_test()
    text = str(caught.value)
    assert text.startswith(f"{cache / 'test-labels.tif'}: ") and says in text and "\n" not in text


@pytest.mark.skipif(not DATA, reason="UNET_JAX_DATA is not set, real data needed")
def test_real_slices():
    examples = isbi2012.read_isbi2012()
    assert [example.name for example in examples] == [f"slice {k}" for k in range(30)]
    for example in examples:
        assert example.image.dtype == np.uint8 and example.image.shape == (512, 512)
        np.testing.assert_array_equal(example.instances > 0, example.labels == 1)
    membrane = np.mean([example.labels == 0 for example in examples])
    assert round(100 * membrane, 2) == 21.96
