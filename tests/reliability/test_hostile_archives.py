"""Archives and servers made to attack: nothing leads out of the cache folder, or fills it.

Downloads come from the loopback interface; what was published is replaced by small files.
"""

import contextlib
import gc
import gzip
import hashlib
import io
import re
import shutil
import socket
import stat
import struct
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import tifffile

from tests.reliability.conftest import forget_peak, peak_bytes
from unet_jax.data import cell_tracking, isbi2012
from unet_jax.data.download import download
from unet_jax.errors import InputError

pytestmark = [
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="no /proc for the memory"
    ),
    # pooch leaves the connection of a failed download to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

SECONDS = 60

VOLUMES = {name: np.full((2, 8, 9), 255, np.uint8) for name in isbi2012.MD5}


def tiff_bytes(pixels):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels)
    return file.getvalue()


FILES = {name: tiff_bytes(pixels) for name, pixels in VOLUMES.items()}


def zip_bytes(members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder in which the small files are those that are published."""
    monkeypatch.delenv("UNET_JAX_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
    sha256 = {name: hashlib.sha256(pixels).hexdigest() for name, pixels in VOLUMES.items()}
    monkeypatch.setattr(isbi2012, "MD5", md5)
    monkeypatch.setattr(isbi2012, "PIXEL_SHA256", sha256)
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "cache" / "unet_jax" / "isbi2012"


def left_over(tmp_path):
    """The names of all files below a folder, which holds a secret."""
    assert (tmp_path / "secret").read_bytes() == b"secret"
    return sorted(path.name for path in tmp_path.rglob("*") if not path.is_dir())


@contextlib.contextmanager
def bounded_memory(limit):
    forget_peak()
    before = peak_bytes()
    yield
    assert peak_bytes() - before < limit


def refusal(call, limit=2**27):
    """The text of an InputError, which comes soon and takes little memory."""
    began = time.perf_counter()
    with bounded_memory(limit), pytest.raises(InputError) as caught:
        call()
    assert time.perf_counter() - began < SECONDS
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_elsewhere(tmp_path):
    return ["../../../", "/", f"{tmp_path}/", "..\\..\\", "C:/", "a/../../../../", "\x1b[2J\n/"]


def test_names_in_an_archive_lead_nowhere(cache, serve_file, monkeypatch, tmp_path):
    for way in names_elsewhere(tmp_path):
        members = {f"{way}secret": b"changed", f"{way}evil.pth": b"import os"}
        slashes = way.replace("\\", "/")  # Python does not take them for separators here
        members |= {slashes + name: content for name, content in FILES.items()}
        address, _ = serve_file(zip_bytes(members))
        monkeypatch.setattr(isbi2012, "ADDRESS", address)
        assert len(isbi2012.read_isbi2012()) == 2
        assert left_over(tmp_path) == sorted([*FILES, "secret"])
        shutil.rmtree(cache)


def link_member(name, target):
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member, str(target)


def test_links_in_an_archive_are_not_made(cache, serve_file, monkeypatch, tmp_path):
    file = io.BytesIO(zip_bytes(FILES))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(*link_member(isbi2012.TEST_LABELS, tmp_path / "secret"))
    address, _ = serve_file(file.getvalue())
    monkeypatch.setattr(isbi2012, "ADDRESS", address)
    assert len(isbi2012.read_isbi2012()) == 2
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert isbi2012.TEST_LABELS in refusal(isbi2012.read_isbi2012_test)


def declaring(content, real, declared):
    """An archive in which a member of `real` bytes is said to have others."""
    return content.replace(struct.pack("<I", real), struct.pack("<I", declared))


def entries(count):
    """A directory of an archive with nothing behind it."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *[20, 0, 20, 0], *[0] * 7, 1, *[0] * 6)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[count % 2**16] * 2, 47 * count, 0, 0)
    return (entry + b"a") * count + end


def overlapping(content):
    """An archive in which each name leads to the same bytes."""
    return re.sub(rb"(PK\x01\x02.{38}).{4}", lambda entry: entry[1] + bytes(4), content, flags=re.S)


LARGE = 2**28 + 7
ARCHIVES = {
    "declares": (lambda: zip_bytes({"train-volume.tif": bytes(LARGE)}), "declares 268,435,463 b"),
    "inflates": (
        lambda: declaring(zip_bytes({"train-volume.tif": bytes(LARGE)}), LARGE, 100),
        "not a complete zip",
    ),
    "inflates_otherwise": (
        lambda: declaring(
            zip_bytes({"train-volume.tif": bytes(LARGE)}, zipfile.ZIP_BZIP2), LARGE, 100
        ),
        "is compressed with method 12",
    ),
    "entries": (lambda: entries(10**6), "holds more than 1,000 files"),
    "overlapping": (lambda: overlapping(zip_bytes(FILES)), "not a complete zip"),
    "unknown_method": (
        lambda: zip_bytes(FILES).replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0"),
        "is compressed with method 99",
    ),
    "encrypted": (
        lambda: zip_bytes(FILES).replace(b"\x14\0\0\0\x08\0", b"\x14\0\1\0\x08\0"),
        "not a complete zip",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_bombs_are_refused(name, cache, serve_file, monkeypatch, tmp_path):
    make, says = ARCHIVES[name]
    address, _ = serve_file(make())
    monkeypatch.setattr(isbi2012, "ADDRESS", address)
    assert says in refusal(isbi2012.read_isbi2012)
    assert left_over(tmp_path) == ["secret"]


def test_mutated_archives_are_whole_or_refused(cache, tmp_path):
    random = np.random.default_rng(0)
    content = zip_bytes(FILES)
    archive = tmp_path / "unpacked" / "challenge.zip"
    archive.parent.mkdir()
    refused = 0
    for _ in range(1000):
        mutated = bytearray(content)
        for at in random.integers(random.choice([0, len(content) - 400]), len(content), 3):
            mutated[at] = random.integers(256)
        archive.write_bytes(mutated)
        try:
            isbi2012._unpack(archive)
        except (InputError, OSError):  # which the caller makes one line of
            refused += 1
    assert 200 < refused < 1000


def test_an_archive_of_another_sum_is_not_opened(cache, serve_file, monkeypatch, tmp_path):
    file = io.BytesIO(zip_bytes({f"{way}secret": b"x" for way in names_elsewhere(tmp_path)}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(*link_member("PhC-C2DH-U373", "/"))
    address, _ = serve_file(file.getvalue())
    monkeypatch.setattr(cell_tracking, "ADDRESS", address)
    monkeypatch.setattr(cell_tracking.zipfile, "ZipFile", None)
    text = refusal(lambda: cell_tracking.find_dataset("PhC-C2DH-U373"))
    assert "SHA-256 of the download is" in text
    assert left_over(tmp_path) == ["secret"]


def test_names_in_a_published_archive_lead_nowhere(cache, serve_file, monkeypatch, tmp_path):
    """Even if whoever publishes it meant harm."""
    members = {f"{way}secret": b"changed" for way in names_elsewhere(tmp_path)}
    content = zip_bytes({"PhC-C2DH-U373/01/t000.tif": b"", **members})
    address, _ = serve_file(content)
    monkeypatch.setattr(cell_tracking, "ADDRESS", address)
    monkeypatch.setattr(
        cell_tracking, "SHA256", {"PhC-C2DH-U373": hashlib.sha256(content).hexdigest()}
    )
    folder = cell_tracking.find_dataset("PhC-C2DH-U373")
    assert left_over(tmp_path) == ["secret", "t000.tif"] and (folder / "01" / "t000.tif").is_file()


# ---- Servers ----


@contextlib.contextmanager
def answering(head, endless=b""):
    """A server that sends `head` and then, for ever, the same; yields its address and what it sent.

    The 256 MiB that it does send are for the case that nobody stops it.
    """
    sent, connections = [0], []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                connections.append(connection)
                with contextlib.suppress(OSError), connection:
                    connection.recv(2**16)
                    connection.sendall(head)
                    while endless and sent[0] < 2**28:
                        connection.sendall(endless)
                        sent[0] += len(endless)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/file.zip", sent
        finally:
            for waiting in (listening, *connections):
                with contextlib.suppress(OSError):
                    waiting.shutdown(socket.SHUT_RDWR)
            thread.join()
            gc.collect()


MEBIBYTE = bytes(2**20)
OK = b"HTTP/1.1 200 OK\r\n"


def chunk(content):
    return b"%x\r\n%s\r\n" % (len(content), content)


def squeezed(levels):
    content = bytes(2**28)
    for _ in range(levels):
        content = gzip.compress(content, 1)
    encodings = b"Content-Encoding: " + b", ".join([b"gzip"] * levels)
    return OK + encodings + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(content)


ENDLESS = {
    "no_length": lambda: (OK + b"\r\n", MEBIBYTE),
    "negative": lambda: (OK + b"Content-Length: -1\r\n\r\n", MEBIBYTE),
    "announced": lambda: (OK + b"Content-Length: 1000000000000\r\n\r\n", MEBIBYTE),
    "chunked": lambda: (OK + b"Transfer-Encoding: chunked\r\n\r\n", chunk(MEBIBYTE)),
    "more": lambda: (
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        chunk(bytes(999)),
    ),
    "squeezed": lambda: (squeezed(1), b""),
    "squeezed_twice": lambda: (squeezed(2), b""),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_server_that_sends_without_end_is_stopped(name, tmp_path):
    limit = 2**22
    head, endless = ENDLESS[name]()
    with answering(head, endless) as (address, sent):
        text = refusal(lambda: download(address, tmp_path / "file", max_bytes=limit))
    assert text == f"{address}: sends more than 4,194,304 bytes; not downloaded."
    assert (tmp_path / "file").stat().st_size < limit + 2**20
    assert sent[0] < 2**25  # what has room on the way


@pytest.mark.parametrize("module", [isbi2012, cell_tracking])
def test_what_came_before_the_end_is_removed(module, cache, monkeypatch, tmp_path):
    read = {
        isbi2012: isbi2012.read_isbi2012,
        cell_tracking: lambda: cell_tracking.find_dataset("PhC-C2DH-U373"),
    }[module]
    monkeypatch.setattr(module, "_MAX_BYTES", 2**22)
    with answering(OK + b"\r\n", MEBIBYTE) as (address, _):
        monkeypatch.setattr(module, "ADDRESS", address)
        assert "sends more than 4,194,304 bytes" in refusal(read)
    assert left_over(tmp_path) == ["secret"]


@pytest.mark.parametrize(
    "head",
    [
        OK + b"Content-Length: many\r\n\r\n",
        OK + b"Content-Length: 5, 6\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 nothing\r\n\r\n",
        b"\0" * 1000,
        OK + b"X: y\r\n" * 1000 + b"\r\n",
        *(
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + where + b"\r\n\r\n"
            for where in (
                b"file:///etc/passwd",
                b"http://[::bad/",
                b"http://a..b/",
                b"//\xff",
                b"x",
            )
        ),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_line(head, cache, monkeypatch, tmp_path):
    with answering(head) as (address, _):
        monkeypatch.setattr(isbi2012, "ADDRESS", address)
        assert refusal(isbi2012.read_isbi2012).startswith(f"{address}: cannot be downloaded (")
    assert left_over(tmp_path) == ["secret"]
