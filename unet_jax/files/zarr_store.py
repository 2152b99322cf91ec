"""Where the keys of a Zarr group or array are: in a folder, or in an S3 bucket or the like."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

import tensorstore

from unet_jax.errors import InputError, one_line
from unet_jax.files.untrusted import MAX_BYTES, read_small

# Blocks are read and written once; a service that does not answer ends it in a minute.
CONTEXT = tensorstore.Context(
    {
        "cache_pool": {"total_bytes_limit": 0},
        "data_copy_concurrency": {"limit": 1},
        "file_io_concurrency": {"limit": 4},
        "s3_request_retries": {"max_retries": 6},
    }
)


def is_remote(url: str) -> bool:
    """Whether it is a URL and not a path."""
    return url.startswith("s3://")


def kvstore(url: str) -> dict[str, Any]:
    """TensorStore's description of where the keys of a group or array are."""
    if not is_remote(url):
        if re.match(r"[A-Za-z][\w+.-]+:/", url):
            raise InputError(f"{url}: expected a path or s3://BUCKET/PATH.")
        return {"driver": "file", "path": f"{Path(url).absolute().as_posix()}/"}
    bucket, _, path = url.removeprefix("s3://").rstrip("/").partition("/")
    store = {
        "driver": "s3",
        "bucket": bucket,
        "path": f"{path}/" if path else "",
        # By default it looks through the home folder too.
        "aws_credentials": {"type": "environment"},
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        store["endpoint"] = endpoint.rstrip("/")
        # AWS itself is asked for a bucket's region. Others may not tell it, but take one alone.
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            store["aws_region"] = region
    return store


def open_kvstore(url: str) -> tensorstore.KvStore:
    """The keys of a group or array, which need not exist; InputError for an unknown place."""
    try:
        return tensorstore.KvStore.open(kvstore(url), context=CONTEXT).result()
    except InputError:
        raise
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}: cannot be opened ({one_line(error)}).") from error


def read_object(url: str, name: str) -> bytes | None:
    """The content of a small object, of at most 64 MiB; None if it does not exist.

    Raises:
      InputError: it cannot be read, or is a link or a pipe.
    """
    store = open_kvstore(url)
    try:
        if not is_remote(url):
            return read_small(Path(url, name))
        found = store.read(name).result()
        if found.state != "missing" and len(found.value) > MAX_BYTES:
            raise ValueError(f"{len(found.value):,} bytes, expected at most {MAX_BYTES:,}")
        return None if found.state == "missing" else found.value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}/{name}: cannot be read ({one_line(error)}).") from error


def read_json(url: str, name: str) -> dict[str, Any] | None:
    """The JSON object in a small file; None if it does not exist, InputError as `read_object`."""
    content = read_object(url, name)
    if content is None:
        return None
    try:
        values = json.loads(content)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{url}/{name}: cannot be read ({one_line(error)}).") from error
    return values


def write_object(url: str, name: str, content: bytes) -> None:
    """Writes a small object, which appears in one step; InputError if it cannot be written."""
    store = open_kvstore(url)
    try:
        store[name] = content
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}/{name}: cannot be written ({one_line(error)}).") from error


def list_objects(url: str, prefix: str) -> list[str]:
    """The ASCII names of the objects with this prefix; InputError if they cannot be listed."""
    store = open_kvstore(url)
    try:
        return [name.decode() for name in store.list(_keys(prefix)).result()]
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}/{prefix}: cannot be listed ({one_line(error)}).") from error


def delete_group(url: str, name: str) -> None:
    """Deletes all objects of a group, if it exists; InputError if they cannot be deleted."""
    store = open_kvstore(url)
    try:
        store.delete_range(_keys(f"{name}/")).result()
        if not is_remote(url):  # its empty folders
            shutil.rmtree(Path(url, name), ignore_errors=True)
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}/{name}: cannot be deleted ({one_line(error)}).") from error


def _keys(prefix: str) -> tensorstore.KvStore.KeyRange:
    """The keys with this prefix, whose last letter must be ASCII."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
    return tensorstore.KvStore.KeyRange(prefix, end)


def stored_chunks(array: tensorstore.TensorStore, first: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The indices of the stored objects of an array that begin with the given numbers."""
    metadata = array.spec().to_json()["metadata"]
    start, separator = "", metadata.get("dimension_separator", ".")
    if encoding := metadata.get("chunk_key_encoding"):  # Zarr 3
        default = encoding["name"] == "default"
        separator = encoding.get("configuration", {}).get("separator", "/" if default else ".")
        start = f"c{separator}" if default else ""
    prefix = start + "".join(f"{index}{separator}" for index in first)
    # What TensorStore has not completed has other names.
    numbers = re.escape(separator).join([r"(\d+)"] * array.rank)
    pattern = re.compile((re.escape(start) + numbers).encode())
    store = cast(tensorstore.KvStore, array.kvstore)  # only other drivers have none
    found = map(pattern.fullmatch, store.list(_keys(prefix)).result())
    return {tuple(map(int, match.groups())) for match in found if match}


def chunk_shape(grid: tensorstore.ChunkLayout.Grid) -> tuple[int, ...]:
    """The shape of a chunk, always known for Zarr; TensorStore's types allow for unknown ones."""
    return cast(tuple[int, ...], grid.shape)
