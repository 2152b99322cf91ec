import os

import pytest

from tests.test_ome_zarr import problem
from unet_jax.files.zarr_store import delete_group, read_object, write_object


def check_objects(url):
    assert read_object(url, "cells/0") is None
    delete_group(url, "cells")
    for name in ("cells/0", "cells/1/0", "cells-0", "d"):
        write_object(url, name, name.encode())
    write_object(url, "d", b"")
    assert read_object(url, "cells/1/0") == b"cells/1/0" and read_object(url, "d") == b""
    delete_group(url, "cells")
    names = ("cells/0", "cells/1/0", "cells-0", "d")
    assert [read_object(url, name) for name in names] == [None, None, b"cells-0", b""]


def test_small_objects_lie_in_folders(tmp_path):
    check_objects(f"{tmp_path}/out")
    files = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(files) == ["cells-0", "d"]
    (tmp_path / "file").touch()
    assert "file/a: cannot be written (" in problem(write_object, f"{tmp_path}/file", "a", b"1")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in problem(read_object, str(tmp_path), "pipe")


@pytest.mark.parametrize("region", ["given", "left to the service"])
def test_small_objects_lie_in_buckets(bucket, monkeypatch, region):
    if region != "given":
        monkeypatch.delenv("AWS_REGION")
    check_objects(f"{bucket}/out")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "ftp://127.0.0.1")
    for call in (read_object, delete_group):
        assert "cannot be opened (" in problem(call, bucket, "a")
    assert "cannot be opened (" in problem(write_object, bucket, "a", b"1")
