"""The arrays of a checkpoint: Orbax writes them, TensorStore reads them.

Orbax's own way of reading is unsafe for files that may come from a stranger: `_METADATA`, a file
next to the arrays, chooses among layouts, in one of which the name of an array is the path of its
files, possibly an absolute one; and Orbax allocates a chunk as large as is declared.

So Orbax's options request one layout, and only that one is read, as Orbax's "Checkpoint Format
Guide" shows under "Working with TensorStore": a folder is an OCDBT database that holds a Zarr 2
array for each leaf of the tree, named by the keys that lead to it: `classes.bias`. No other file is
looked at. Orbax 0.11.0 to 0.12.8 write this layout; a version that wrote another one would end a
run at its first checkpoint, because what is written is opened at once as it will be read.
"""

from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from unet_jax.errors import InputError, one_line

Tree = TypeVar("Tree")


def write_arrays(folder: Path, tree: Any) -> None:
    """Writes a tree of arrays, none of them spread over devices, to a new folder.

    Failures raise many kinds of exceptions.
    """
    # Where there are several processes, Orbax would otherwise wait for the others.
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(this, {this}, f"process{this}")
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True, use_zarr3=False, multiprocessing_options=alone
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(folder.resolve(), args=ocp.args.PyTreeSave(tree))
    _open(folder, tree)


def read_arrays(folder: Path, like: Tree) -> Tree:
    """The arrays of a folder with the structure, shapes and dtypes of `like`.

    Raises:
      InputError: the arrays there do not match, or cannot be read.
    """
    try:
        stored = _open(folder, like)
        reading = {name: array.read() for name, array in stored.items()}  # all at once
        arrays = {name: future.result() for name, future in reading.items()}
    except InputError:
        raise
    except Exception as error:  # a file of another format raises many kinds
        raise InputError(f"{folder}: cannot be read ({one_line(error)}).") from error
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.array(arrays[_name(path)], dtype=x.dtype), like
    )


def _open(folder: Path, like: Any) -> dict[str, tensorstore.TensorStore]:
    """The stored arrays by name, after checking that names, shapes and dtypes match `like`.

    Each has one chunk: otherwise TensorStore would allocate whatever is declared, or seek billions.
    """
    expected = {
        _name(path): f"{x.shape} {_declared(x.dtype)}"
        for path, x in jax.tree_util.tree_leaves_with_path(like)
    }
    base = {"driver": "file", "path": f"{folder.resolve().as_posix()}/"}
    database = {"driver": "ocdbt", "base": base}
    keys = [key.decode() for key in tensorstore.KvStore.open(database).result().list().result()]
    saved = {key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")}
    arrays = {}
    for name in sorted(saved | expected.keys()):
        found, wanted = "no such array", expected.get(name, "no such array")
        if name in saved:
            spec = {
                "driver": "zarr",
                "kvstore": database | {"path": f"{name}/"},
                "fill_missing_data_reads": False,
            }
            array = arrays[name] = tensorstore.open(spec, read=True).result()
            found = f"{array.shape} {_declared(array.dtype.numpy_dtype)}"
        if found != wanted:
            raise InputError(
                f"{folder}: belongs to another network: {one_line(name)} is {found}, expected "
                f"{wanted}."
            )
        chunk = arrays[name].chunk_layout.read_chunk_template.shape
        if chunk != arrays[name].shape:
            raise ValueError(f"{name} is stored in chunks of {chunk}")
    return arrays


def _declared(dtype: np.dtype) -> np.dtype:
    """The dtype that an array should have been saved in.

    Earlier versions saved some as float64 if JAX was set to 64 bits (`jax_enable_x64`).
    """
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _name(path: tuple[Any, ...]) -> str:
    """Orbax's name of a leaf: the keys of dicts, fields of named tuples and indices of tuples."""
    keys = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in path]
    return ".".join(map(str, keys))
