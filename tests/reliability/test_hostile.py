"""Checkpoints made to attack: nothing of them is executed, sent, or leaves its folder.

Each attack is a checkpoint folder whose manifest is right, since who makes one can compute it. All
of them are loaded in a child process (this file, run as a program) in which an audit hook forbids
what an attack is for; TensorStore is no Python, so strace looks at the same process from outside.
"""

import base64
import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import pickle
import re
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import types
import typing
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore
import tifffile

from tests.reliability.conftest import forget_peak, peak_bytes
from tests.test_checkpoint import FIELDS, a_record, a_state, a_training
from unet_jax import checkpoint, load
from unet_jax.checked_settings import as_dict
from unet_jax.data.splits import read_splits
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.errors import InputError
from unet_jax.instances import InstanceSettings
from unet_jax.network import UNet, init_params
from unet_jax.run.log import read_log
from unet_jax.run_record import Record, StartedFrom, read_record
from unet_jax.sources import CellTracking, Folder, Synthetic

pytestmark = [
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="no /proc for the memory"
    ),
    # pooch leaves the connection of a failed download to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

ROOT = Path(__file__).parents[2]
STEP = "000005"
# In the name of what must not be touched, and in everything that must not be executed.
MARK = "hostile_7c1e"
SECONDS = 60
PEAK_BYTES = 1.5 * 2**30  # a third of it is the program itself
BEGINS = f"/{MARK}_begins"  # a file that is asked for, for strace to see


def payload(outside):
    return f"__import__('os').system('touch {outside}/executed')"


# ---- A good checkpoint ----

# As `fit` writes it.
RECORD = a_record(5, 0.5, training=a_training(UNet(**FIELDS)))


def seal(step):
    """Writes the manifest of what lies in the folder now."""
    digests = {}
    for path in sorted(step.rglob("*")):
        # What is neither read nor hashed in a second gets any digest.
        if path.is_symlink() or path.is_fifo() or path.is_socket() or path.is_block_device():
            digests[path.relative_to(step).as_posix()] = "0" * 64
        elif path.is_char_device() or (path.is_file() and path.stat().st_size > 2**30):
            digests[path.relative_to(step).as_posix()] = "0" * 64
        elif path.is_file() and path.name != "sha256.json":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            digests[path.relative_to(step).as_posix()] = digest
    (step / "sha256.json").write_text(json.dumps(digests))


# ---- Attacks ----

ATTACKS = {}


def attack(outcome, *, sealed=False, name=None):
    """Registers `attack(step, outside)`, which makes a good step bad.

    Args:
      outcome: "loads", or what the refusal says.
      sealed: whether the manifest is made before the attack instead of after it.
      name: of the attack; by default the function's.
    """

    def register(function):
        key = name or function.__name__
        assert key not in ATTACKS
        ATTACKS[key] = (function, outcome, sealed)
        return function

    return register


@attack("loads")
def nothing_at_all(step, outside):
    pass


# (a) Locations elsewhere.


def read_arrays(folder):
    """The keys and values of the OCDBT database in a folder."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
    return {key.decode(): store[key] for key in store.list().result()}


def drop_arrays(folder):
    for name in ("d", "ocdbt.process_0"):
        shutil.rmtree(folder / name)
    (folder / "manifest.ocdbt").unlink()


def write_arrays(folder, values, outside=None, *, config=None, one_by_one=False, **options):
    """Replaces the database. What its names put elsewhere is put there, into `outside`."""
    drop_arrays(folder)
    context = tensorstore.Context({})
    config = {"max_inline_value_bytes": 0, "max_decoded_node_bytes": 2**31 - 1} | (config or {})
    spec = {"driver": "ocdbt", "base": "memory://made/", "assume_config": True, "config": config}
    store = tensorstore.KvStore.open(spec | options, context=context).result()
    with tensorstore.Transaction() as transaction:
        for key, value in values.items():
            (store if one_by_one else store.with_transaction(transaction))[key] = value
    made = tensorstore.KvStore.open("memory://made/", context=context).result()
    for key in made.list().result():
        name = key.decode()
        file = outside / Path(name).name if outside and MARK in name else folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(made[key])


def edit_json(file, edit):
    content = json.loads(file.read_bytes())
    content = edit(content) or content
    file.write_text(json.dumps(content))


def edit_array(values, name, **changes):
    values[f"{name}/.zarray"] = json.dumps(json.loads(values[f"{name}/.zarray"]) | changes).encode()


def locations(outside):
    """Names for something elsewhere: the same file by several ways, and other machines."""
    return {
        "absolute": f"{outside}/",
        "parent": f"../../../../../{outside.name}/",
        "parent_inside": f"d/../../../../../../{outside.name}/",
        "http": f"http://127.0.0.1:9/{MARK}/",
        "gs": f"gs://{MARK}/",
        "file": f"file://{outside}/",
    }


WAYS = list(locations(Path("x")))


def database_elsewhere(way, prefix, step, outside):
    where = locations(outside)[way]
    write_arrays(step / "params", read_arrays(step / "params"), outside, **{prefix: where})


def named_elsewhere(way, ocdbt, step, outside):
    folder = step / "params"
    values = read_arrays(folder)
    if not ocdbt:
        drop_arrays(folder)
        for key, value in values.items():
            (folder / key).parent.mkdir(exist_ok=True)
            (folder / key).write_bytes(value)
    name = locations(outside)[way] + "array"
    entry = {
        "key_metadata": [{"key": name, "key_type": 2}],
        "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
    }

    def edit(metadata):
        metadata["use_ocdbt"] = ocdbt
        metadata["tree_metadata"][f"('{name}',)"] = entry

    edit_json(folder / "_METADATA", edit)
    shapes = folder / "array_metadatas" / "process_0"
    if shapes.exists():  # Orbax 0.11.0 writes none
        edit_json(
            shapes, lambda m: m["array_metadatas"][0]["array_metadata"].update(param_name=name)
        )


def called_elsewhere(way, step, outside):
    """An array more, in the database itself, with the path of another one for its name."""
    values = read_arrays(step / "params")
    name = locations(outside)[way] + "array"
    write_arrays(step / "params", values | {f"{name}/.zarray": values["classes.bias/.zarray"]})


for way in WAYS:
    # The root of the tree is read first, so the error is about the array that is not found.
    for prefix in ("value_data_prefix", "btree_node_data_prefix"):
        attack("Invalid key|b-tree node", name=f"{prefix}_{way}")(
            functools.partial(database_elsewhere, way, prefix)
        )
    attack("no such array", name=f"plain_files_{way}")(
        functools.partial(named_elsewhere, way, False)
    )
    attack("loads", name=f"named_in_database_{way}")(functools.partial(named_elsewhere, way, True))
    attack("expected no such array", name=f"called_in_database_{way}")(
        functools.partial(called_elsewhere, way)
    )


@attack("loads")
def database_rebuilt(step, outside):
    """Shows that the ones above fail for where they point to, not for how they are made."""
    write_arrays(step / "params", read_arrays(step / "params"), value_data_prefix="inside/")


@attack("loads")
def older_versions_elsewhere(step, outside):
    """What nobody asks for is not fetched."""
    values = read_arrays(step / "params")
    options = {"version_tree_node_data_prefix": locations(outside)["parent"]}
    config = {"version_tree_arity_log2": 1}
    write_arrays(step / "params", values, outside, config=config, one_by_one=True, **options)


@attack("no such array")
def plain_files_unannounced(step, outside):
    named_elsewhere("absolute", False, step, outside)
    edit_json(step / "params" / "_METADATA", lambda metadata: metadata.pop("use_ocdbt") and None)


@attack("loads")
def zarr3(step, outside):
    edit_json(step / "params" / "_METADATA", lambda metadata: metadata.update(use_zarr3=True))


@attack("loads")
def shardings_elsewhere(step, outside):
    elsewhere = {"sharding_type": "SingleDeviceSharding", "device_str": f"http://{outside}"}
    names = [base64.b64encode(f"classes.{name}".encode()).decode() for name in ("bias", "kernel")]
    shardings = dict.fromkeys(names, json.dumps(elsewhere))
    (step / "params" / "_sharding").write_text(json.dumps(shardings))


for key, value, says in [
    ("compressor", {"id": "file:///etc/passwd", "level": 1}, "cannot be read"),
    ("filters", [{"id": "pickle"}], "cannot be read"),
    ("dtype", "|O", "Unsupported zarr dtype"),
    ("kvstore", "http://127.0.0.1:9/", "loads"),
]:

    @attack(says, name=f"zarr_{key}")
    def zarr(step, outside, key=key, value=value):
        values = read_arrays(step / "params")
        edit_array(values, "classes.bias", **{key: value})
        write_arrays(step / "params", values)


# (b) Links, pipes, devices, holes.


for where, says in {
    "params/_METADATA": "is not a regular file",
    "params/d": "is not a regular file",
    "params": "is not a regular file",
    "new": "is not a regular file",
    "sha256.json": "is not a regular file",
    "checkpoint.json": "is not a regular file",
    "": "is a link",
    "..": "is a link",
}.items():
    name = {"": "step", "..": "steps"}.get(where, where.replace("/", "_"))

    @attack(says, sealed=True, name=f"link_{name}")
    def linked(step, outside, where=where, name=name):
        target = step.parent if where == ".." else step / where
        if target.exists():
            shutil.move(target, outside / f"linked_{name}")
        else:
            (outside / f"linked_{name}").write_bytes(b"secret")
        target.symlink_to(outside / f"linked_{name}")


@attack("fold0: is a link", sealed=True)
def link_fold(step, outside):
    workdir = step.parents[1]
    shutil.move(workdir / "checkpoints", outside / "fold" / "checkpoints")
    (workdir / "fold0").symlink_to(outside / "fold")


for folds, says in {2: "holds 1 of 2 folds", -1: "holds 1 of -1 folds", None: "loads"}.items():

    @attack(says, sealed=True, name=f"fold_of_{folds or 'nothing'}")
    def fold_alone(step, outside, folds=folds):
        """Where there is no word of folds, it is the only one."""
        workdir = step.parents[1]

        def edit(record):
            del record["folds"]
            return record | ({"folds": folds} if folds else {})

        edit_json(step / "checkpoint.json", edit)
        seal(step)
        (workdir / "fold0").mkdir()
        shutil.move(workdir / "checkpoints", workdir / "fold0" / "checkpoints")


@attack("is not a regular file")
def link_in_a_circle(step, outside):
    (step / "params" / "circle").symlink_to("..")


for where in ("sha256.json", "checkpoint.json", "params/_METADATA", "params/d/pipe"):

    @attack("is not a regular file", sealed=True, name=f"pipe_{where.replace('/', '_')}")
    def pipe(step, outside, where=where):
        (step / where).unlink(missing_ok=True)
        os.mkfifo(step / where)


@attack("is not a regular file")
def local_socket(step, outside):
    # Its address has room for 100 letters.
    with contextlib.chdir(step), socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")


@attack("is not a regular file")
def device(step, outside):
    try:
        os.mknod(step / "zeros", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:  # it takes root
        os.mkfifo(step / "zeros")


for where, says in {
    "params/d/hole": "has holes",
    "sha256.json": "is not a regular file of at most",
    "checkpoint.json": "is not a regular file of at most",
}.items():

    @attack(says, sealed=where != "params/d/hole", name=f"holes_{where.replace('/', '_')}")
    def holes(step, outside, where=where):
        """A tebibyte that takes no space."""
        with (step / where).open("ab") as file:
            file.truncate(2**40)


@attack("nested more than 20 deep", sealed=True)
def folders_without_end(step, outside):
    with contextlib.chdir(step):
        for _ in range(1200):
            os.mkdir("x")
            os.chdir("x")


# (c) Code.


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@attack("loads")
def code_lying_around(step, outside):
    command = f"touch {outside}/executed"
    code = f"{payload(outside)}  # {MARK}\n"
    array = np.array([Evil(command)], dtype=object)
    for folder in (step, step / "params" / "d", step / "params", step.parent, step.parents[1]):
        for module in ("sitecustomize", "usercustomize", "conftest", "config", "__init__", "jax"):
            (folder / f"{module}.py").write_text(code)
        (folder / "evil.pth").write_text(f"import os; {code}")
        for name in ("checkpoint.pkl", "params.pickle", "flax_model.msgpack", "params.pt"):
            (folder / name).write_bytes(pickle.dumps(Evil(command)))
        np.save(folder / "params.npy", array, allow_pickle=True)
        np.savez(folder / "params.npz", array)


for name, content in {
    "pickle": pickle.dumps(Evil("true")),
    "msgpack": b"\x81\xa7classes\x81\xa4bias\xcb" + bytes(8),  # {"classes": {"bias": 0.0}}
}.items():

    @attack("loads", name=f"{name}_instead_of_arrays")
    def instead_of_arrays(step, outside, content=content):
        """What the oldest Orbax wrote arrays to, and today's still reads."""
        (step / "params" / "checkpoint").write_bytes(content)


@attack("loads")
def types_to_import(step, outside):
    """Orbax can record the type of a container by its module and name."""

    def edit(metadata):
        leaf = {
            "category": "custom",
            "clazz": "ValueMetadataEntry",
            "data": {"value_type": "jax.Array", "skip_deserialize": False},
        }
        metadata["value_metadata_tree"] = json.dumps(
            {
                "category": "namedtuple",
                "module": f"os {MARK}",
                "clazz": "system",
                "entries": [{"key": "a", "value": leaf}],
            }
        )

    edit_json(step / "params" / "_METADATA", edit)


for kind in ("string", "scalar", "jax.random.key", "os.system"):

    @attack("loads", name=f"value_type_{kind}")
    def value_type(step, outside, kind=kind):
        def edit(metadata):
            for entry in metadata["tree_metadata"].values():
                entry["value_metadata"]["value_type"] = kind

        edit_json(step / "params" / "_METADATA", edit)


@attack("loads")
def handler_to_import(step, outside):
    edit_json(
        step / "params" / "_CHECKPOINT_METADATA", lambda m: m.update(item_handlers="os.system")
    )


for source, keys in {
    "folder": ("images", "labels"),
    "cell_tracking": ("dataset", "train_sequence", "test_sequence", "truth"),
}.items():

    @attack("loads", name=f"expressions_{source}")
    def expressions(step, outside, source=source, keys=keys):
        code = payload(outside) + f"  # {MARK}"

        def edit(record):
            record["class_names"] = [f"<script>{code}</script>", f"${code}$ {{{{ {code} }}}}"]
            record["config"]["class_names"] = record["class_names"]
            record["command"] = f"python train.py; $({code})"
            record["config"]["data"] = {"source": source} | dict.fromkeys(keys, code)
            record["config"]["train"]["start_from"] = f"!!python/object/apply:os.system ['{code}']"
            record["versions"] |= {"unet-jax": f"<img src=x onerror={code}>", code: code}
            record["splits"]["train"] = [code]
            record["data"] = record["images"] = {code: code}
            source_run = {"checkpoint": code, "step": 1, "manifest_sha256": f"<b>{code}</b>"}
            record["started_from"] = source_run | {"new_layers": [code], "seen": [code]}

        edit_json(step / "checkpoint.json", edit)


# (d) Records.


def described(keys, value):
    """An attack that puts a value into checkpoint.json."""

    def make(step, outside):
        def edit(record):
            inner = record
            for key in keys[:-1]:
                inner = inner[key]
            inner[keys[-1]] = value

        edit_json(step / "checkpoint.json", edit)

    return make


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


NO_CHECKPOINT = "is not a checkpoint of this program"
SPLITS = ("train", "validation", "test")
SOURCE = StartedFrom("runs/a", 3, "0" * 64, ["classes"], ["picture 1"])
for name, keys, value, says in [
    ("width", ["model", "width"], 10**9, NO_CHECKPOINT),
    ("width_of_another", ["model", "width"], 3, NO_CHECKPOINT),
    ("negative_width", ["model", "width"], -2, NO_CHECKPOINT),
    ("width_that_is_none", ["model", "width"], True, NO_CHECKPOINT),
    ("width_with_a_point", ["model", "width"], 2.0, NO_CHECKPOINT),
    ("depth", ["model", "depth"], 64, NO_CHECKPOINT),
    ("dtype", ["model", "dtype"], "os.system", NO_CHECKPOINT),
    ("dtype_of_objects", ["model", "dtype"], "O", NO_CHECKPOINT),
    ("dropout", ["model", "dropout_rate"], float("nan"), NO_CHECKPOINT),
    ("unknown_field", ["model", "activation"], "os.system", NO_CHECKPOINT),
    ("newline_in_a_field", ["model", "a\nb\x1b[2J"], 1, NO_CHECKPOINT),
    ("model_that_is_a_list", ["model"], [2, 2], NO_CHECKPOINT),
    ("channels", ["channels"], 10**9, NO_CHECKPOINT),
    ("channels_of_another", ["channels"], 1000, "belongs to another network"),
    ("channels_that_are_text", ["channels"], "1", NO_CHECKPOINT),
    ("scale", ["scale"], 1e9, NO_CHECKPOINT),
    ("scale_that_fills_the_memory", ["scale"], 99, NO_CHECKPOINT),
    ("scale_that_is_nothing", ["scale"], float("nan"), NO_CHECKPOINT),
    ("scale_that_is_text", ["scale"], "1", NO_CHECKPOINT),
    ("tiny_scale", ["scale"], 1e-300, "loads"),
    ("percentiles", ["percentiles"], [-1, 1e9], NO_CHECKPOINT),
    ("percentiles_that_are_none", ["percentiles"], [False, True], NO_CHECKPOINT),
    ("many_percentiles", ["percentiles"], [0] * 10**6, NO_CHECKPOINT),
    ("validation", ["validation"], "low", NO_CHECKPOINT),
    ("loss", ["validation"], {"loss": [0.5]}, NO_CHECKPOINT),
    ("loss_that_is_nothing", ["validation"], {"loss": float("nan")}, "loads"),
    ("unknown_part", ["unknown"], "x", "loads"),
    ("validation_in_words", ["validation"], {"loss": 0.5, "pixel_error": "low"}, NO_CHECKPOINT),
    ("nested_200", ["unknown"], nested(200), NO_CHECKPOINT),
    ("nested_config", ["config", "data", "deep"], nested(200), NO_CHECKPOINT),
    ("absolute_paths", ["config", "data"], {"source": "folder", "images": f"/{MARK}"}, "loads"),
    ("half_a_letter", ["command"], "\ud800", NO_CHECKPOINT),
    ("name_that_is_no_text", ["data"], {"\udcff": "\udcff"}, "loads"),
    ("split_that_is_no_text", ["splits", "train"], ["\udcff"], "loads"),
    ("version_that_is_no_text", ["versions", "\udcff"], "", NO_CHECKPOINT),
    ("zero_byte", ["config", "train", "start_from"], "a\0b", NO_CHECKPOINT),
    ("no_step", ["step"], None, NO_CHECKPOINT),
    ("folds", ["folds"], "3\n", NO_CHECKPOINT),
    ("class_names", ["class_names"], "ab", NO_CHECKPOINT),
    ("class_names_without_end", ["config", "class_names"], ["x"] * 10**5, NO_CHECKPOINT),
    ("class_colours", ["config", "class_colours"], ["red", ["x"]], NO_CHECKPOINT),
    ("classes_of_the_report", ["config", "model", "classes"], 10**9, NO_CHECKPOINT),
    ("learning_rate", ["config", "optimiser", "peak_learning_rate"], "{}", NO_CHECKPOINT),
    ("steps", ["config", "train", "steps"], {"a": 1}, NO_CHECKPOINT),
    ("steps_beyond_floats", ["config", "weight_map", "w0"], 10**400, NO_CHECKPOINT),
    ("augmentation", ["config", "augmentation"], {"shift": [1.0]}, NO_CHECKPOINT),
    ("augmentation_by_default", ["config", "augmentation"], {"shift": 1.0}, "loads"),
    ("source", ["config", "data"], {}, NO_CHECKPOINT),
    ("unknown_source", ["config", "data", "source"], "os.system", NO_CHECKPOINT),
    ("value_of_another_source", ["config", "data", "images"], f"/{MARK}", NO_CHECKPOINT),
    ("unknown_part_of_the_config", ["config", "extra"], "!!python/name:os.system", NO_CHECKPOINT),
    ("size_of_the_pictures", ["config", "data", "height"], 10**9, NO_CHECKPOINT),
    ("seed_of_the_pictures", ["config", "data", "seed"], -1, NO_CHECKPOINT),
    ("ignore_value", ["config", "data", "ignore_value"], [1], NO_CHECKPOINT),
    ("config", ["config"], None, NO_CHECKPOINT),
    ("config_that_is_a_list", ["config"], ["model"], NO_CHECKPOINT),
    ("splits", ["splits"], {"train": 3}, NO_CHECKPOINT),
    ("splits_of_letters", ["splits"], dict.fromkeys(SPLITS, "ab"), NO_CHECKPOINT),
    ("class_weights", ["class_weights"], ["2.0", [0.5]], NO_CHECKPOINT),
    ("started_from", ["started_from"], "elsewhere", NO_CHECKPOINT),
    ("started_from_what", ["started_from"], asdict(SOURCE) | {"step": "3"}, NO_CHECKPOINT),
    ("new_layers", ["started_from"], asdict(SOURCE) | {"new_layers": [{}]}, NO_CHECKPOINT),
    ("versions", ["versions"], [], NO_CHECKPOINT),
    ("data", ["data"], "x", NO_CHECKPOINT),
]:
    attack(says, name=f"described_{name}")(described(keys, value))


@attack(NO_CHECKPOINT)
def described_class_names_that_are_no_text(step, outside):
    def edit(record):
        record["class_names"] = record["config"]["class_names"] = ["\udcff", "cell"]

    edit_json(step / "checkpoint.json", edit)


for name, text in {
    "nested_100000": "[" * 100_000,
    "nested_objects": '{"a":' * 100_000,
    "list": "[]",
    "number": "9" * 5000,
    "nothing": "",
    "not_text": "\ud800",
}.items():

    @attack("is damaged|is not a checkpoint of this program", name=f"described_as_{name}")
    def described_as(step, outside, text=text):
        (step / "checkpoint.json").write_bytes(text.encode(errors="surrogatepass"))


@attack("bytes of parameters, but holds only")
def width_that_nothing_is_behind(step, outside):
    """The largest network that is allowed, 50 TB: each array declared, none there."""
    model = FIELDS | {"width": 4096, "depth": 8}

    def edit(record):
        record["model"] = record["config"]["model"] = model
        record["config"]["train"]["tile_side"] = 1532

    edit_json(step / "checkpoint.json", edit)
    declare(step, UNet(**model))


# (e) Manifests.


def manifest(edit):
    def make(step, outside):
        edit_json(step / "sha256.json", functools.partial(edit, outside))

    return make


def digest_of(text):
    return hashlib.sha256(text).hexdigest()


for name, edit in {
    "parent": lambda outside, m: m.update(
        {f"../../../../{outside.name}/secret": digest_of(b"secret")}
    ),
    "absolute": lambda outside, m: m.update({f"{outside}/secret": digest_of(b"secret")}),
    "missing": lambda _, m: m.pop("params/_METADATA") and None,
    "additional": lambda _, m: m.update({"params/new\n\x1b[2J": "0" * 64}),
    "itself": lambda _, m: m.update({"sha256.json": "0" * 64}),
    "only_itself": lambda _, m: ["checkpoint.json"],
    "numbers": lambda _, m: dict.fromkeys(m, 0),
    "lists": lambda _, m: dict.fromkeys(m, []),
    "text": lambda _, m: "checkpoint.json",
    "short": lambda _, m: {"checkpoint.json": m["checkpoint.json"]},
}.items():
    attack("is damaged", sealed=True, name=f"manifest_{name}")(manifest(edit))


@attack("is damaged", sealed=True)
def manifest_nested(step, outside):
    (step / "sha256.json").write_text("[" * 100_000)


@attack("new.*was not saved", sealed=True)
def file_that_the_manifest_does_not_name(step, outside):
    (step / "new\n\x1b[2J").write_bytes(b"x")


@attack("no checkpoint in this folder", sealed=True)
def step_that_is_no_number(step, outside):
    step.rename(step.with_name("..5"))


@attack("is damaged", sealed=True)
def step_of_other_digits(step, outside):
    """Python reads them as a number, which is written otherwise."""
    step.rename(step.with_name("٥"))


# (f) Arrays out of little.


def declare(step, network):
    """Declares all parameters of a network without a chunk of them."""
    like = jax.eval_shape(lambda key: init_params(key, network, 1), jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(like)[0]
    shapes = {".".join(key.key for key in path): list(x.shape) for path, x in leaves}
    values = read_arrays(step / "params")
    template = json.loads(values["classes.bias/.zarray"])
    edited = {
        f"{name}/.zarray": json.dumps(
            template | {"shape": shape, "chunks": shape, "fill_value": 0.0}
        ).encode()
        for name, shape in shapes.items()
    }
    entries = {
        str(tuple(name.split("."))): {
            "key_metadata": [{"key": key, "key_type": 2} for key in name.split(".")],
            "value_metadata": {
                "value_type": "jax.Array",
                "skip_deserialize": False,
                "write_shape": shape,
            },
        }
        for name, shape in shapes.items()
    }
    write_arrays(step / "params", edited)
    edit_json(
        step / "params" / "_METADATA",
        lambda m: m.update(tree_metadata=entries, store_array_data_equal_to_fill_value=False),
    )


def bomb(make, says):
    @functools.wraps(make)
    def attacked(step, outside):
        values = read_arrays(step / "params")
        make(values)
        write_arrays(step / "params", values)
        edit_json(
            step / "params" / "_METADATA",
            lambda m: m.update(store_array_data_equal_to_fill_value=False),
        )

    return attack(says)(attacked)


def zstd_zeros(size):
    """A frame of `size` zeros, 4 bytes for each 128 KiB of them."""
    frame = bytearray(b"\x28\xb5\x2f\xfd\x00\x38")
    for left in range(size // 2**17 - 1, -1, -1):
        frame += (2**17 << 3 | 1 << 1 | (left == 0)).to_bytes(3, "little") + b"\0"
    return bytes(frame)


@functools.partial(bomb, says="in chunks of")
def chunk_beyond_the_memory(values):
    edit_array(values, "classes.bias", chunks=[2**40])


@functools.partial(bomb, says="in chunks of")
def chunk_of_16_gigabytes(values):
    edit_array(values, "classes.bias", chunks=[2**32])
    values["classes.bias/0"] = zstd_zeros(2**34)


@functools.partial(bomb, says="in chunks of")
def a_chunk_for_each_number(values):
    edit_array(values, "contracting2_conv2.kernel", chunks=[1, 1, 1, 1], fill_value=0.0)


@functools.partial(bomb, says="cannot be read")
def zstd_bomb(values):
    values["classes.bias/0"] = zstd_zeros(2**33)


@functools.partial(bomb, says="belongs to another network")
def shape_beyond_the_memory(values):
    edit_array(values, "classes.bias", shape=[2**40], chunks=[2**40], fill_value=0.0)
    del values["classes.bias/0"]


@functools.partial(bomb, says="belongs to another network")
def dtype_of_a_gigabyte(values):
    edit_array(values, "classes.bias", dtype=f"|V{2**30}", fill_value=None)


for name in ("_METADATA", "_sharding", "_CHECKPOINT_METADATA", "array_metadatas/process_0"):

    @attack("loads", name=f"deep_{name.replace('/', '_')}")
    def deep(step, outside, name=name):
        (step / "params" / name).parent.mkdir(exist_ok=True)
        (step / "params" / name).write_text('{"a":' * 100_000)


@attack("JSON|Expecting")
def deep_array(step, outside):
    values = read_arrays(step / "params")
    values["classes.bias/.zarray"] = b"[" * 100_000
    write_arrays(step / "params", values)


# ---- Beside the checkpoints ----

BESIDE = {}
# Of a log, without numbers where some have to be.
ROWS = """{"step": 1, "loss": {}}
{"step": 1, "loss": "low"}
{"step": 1, "validation": 3}
{"step": 1, "validation": {}}
{"step": 1, "validation": {"loss": 0.5, "pixel_error": []}}
{"step": Infinity, "loss": 0.5}
{"step": null, "loss": 0.5}
{"loss": 0.5}
"""


def beside(make):
    """Registers what a run's folder, `make(workdir, outside)`, can hold beside checkpoints."""
    BESIDE[make.__name__] = make
    return make


for file in ("instances.json", "log.jsonl"):
    for name, make in {
        "link": lambda path, outside: path.symlink_to(outside / "secret"),
        "pipe": lambda path, outside: os.mkfifo(path),
        "hole": lambda path, outside: (path.touch(), os.truncate(path, 2**40)),
        "nested": lambda path, outside: path.write_text("[" * 100_000),
        "other": lambda path, outside: path.write_text('{"step": "x", "loss": {}}\n[1]\n2\n'),
        "rows": lambda path, outside: path.write_text(ROWS),
        "huge": lambda path, outside: path.write_text(
            json.dumps(as_dict(InstanceSettings()) | {"neck_ratio": 10**400, "step": 1})
        ),
    }.items():

        def make_file(workdir, outside, make=make, file=file):
            make(workdir / file, outside)

        BESIDE[f"{file.split('.')[0]}_{name}"] = make_file


@beside
def out_link(workdir, outside):
    (workdir / "evaluation_images").symlink_to(outside / "fold")


for file in ("examples.png", ".unfinished-examples.png", ".unfinished-report.json"):

    def result_link(workdir, outside, file=file):
        (workdir / "evaluation_images").mkdir()
        (workdir / "evaluation_images" / file).symlink_to(outside / "new")

    BESIDE[f"{file.strip('.')}_link"] = result_link


@beside
def without_config(workdir, outside):
    step = workdir / "checkpoints" / STEP
    edit_json(step / "checkpoint.json", lambda record: record.pop("config") and None)
    seal(step)


@beside
def with_rules_for_masks(workdir, outside):
    """That are taken for those of the images to evaluate."""
    step = workdir / "checkpoints" / STEP
    data = {"source": "folder", "mask_rule": "os.system", "ignore_value": 10**30}
    described(["config", "data"], data)(step, outside)
    seal(step)


# ---- The child process ----


def watch(area, writable):
    """Forbids, from now on, all that attacks are for; returns the list of what was tried."""
    tried = []
    outside = str(area / MARK)
    changing = {"remove", "rename", "mkdir", "rmdir", "link", "symlink", "truncate", "chmod"}
    changing = {f"os.{name}" for name in changing | {"chown", "utime", "mknod", "mkfifo"}}
    running = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"}

    def inside(path, folders, follow=True):
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a file that was opened already
        path = os.fsdecode(path)
        parent, name = (path, "") if follow else os.path.split(path)
        path = os.path.join(os.path.realpath(parent), name).rstrip("/")
        return any(path == folder or path.startswith(folder + "/") for folder in folders)

    def forbidden(event, args):
        if event == "open":
            path, mode, flags = args
            if isinstance(path, int):
                return False
            write = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            return inside(path, [outside]) or (write and not inside(path, writable))
        if event in changing:
            paths = [path for path in args if isinstance(path, str | bytes)]
            return not all(inside(path, writable, follow=False) for path in paths)
        if event in ("exec", "compile"):
            code = args[0]
            name = args[1] if event == "compile" else getattr(code, "co_filename", None)
            text = (code.co_consts, code.co_names) if hasattr(code, "co_consts") else code
            return MARK in str(text) or (
                name and os.path.exists(name) and inside(name, [str(area)])
            )
        if event == "pickle.find_class":
            return args[0] in ("os", "posix", "subprocess") or args[1] in ("eval", "exec")
        if event == "subprocess.Popen":
            return list(args[1][:3]) != ["git", "-C", str(ROOT / "unet_jax")]
        if event == "socket.__new__":
            return args[1] != socket.AF_UNIX  # asyncio has a pair of them
        return event in running or event.startswith(("socket.connect", "socket.get", "socket.bind"))

    def hook(event, args):
        if forbidden(event, args):
            tried.append(f"{event} {args!r}"[:300])
            raise PermissionError(tried[-1])

    sys.addaudithook(hook)
    return tried


@contextlib.contextmanager
def alarm():
    def ring(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS + 5)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome(act):
    """How something ends, in a line."""
    try:
        with alarm():
            act()
    except InputError as error:
        return f"refused: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "loads"


def loading(area):
    like = a_state()

    def act(workdir):
        result = {"load": outcome(lambda: load(workdir))}
        result["restore"] = outcome(lambda: checkpoint.restore(workdir, 5, like))
        return result

    return act


def evaluating(area):
    import matplotlib.font_manager  # noqa: F401 (asks a program once which fonts there are)

    from unet_jax import command_line
    from unet_jax.programs import eval as program

    def act(workdir):
        arguments = f"--checkpoint={workdir} --images={area}/images --labels={area}/masks"
        sys.argv = ["eval.py", *arguments.split()]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = outcome(lambda: command_line.run(program.main))
        return {"status": status, "errors": errors.getvalue()}

    return act


def misbehaving(area):
    """Does deliberately what must be noticed."""
    outside = area / MARK
    step = area / "attacks" / "code_lying_around" / "checkpoints" / STEP

    def connect():
        with socket.socket() as tcp:
            tcp.connect(("127.0.0.1", 9))

    def read_by_tensorstore():
        assert tensorstore.KvStore.open(f"file://{outside}/").result()["secret"] == b"secret"

    acts = {
        "read": lambda: (outside / "secret").read_bytes(),
        "read_by_a_link": lambda: (area / "images" / ".." / MARK / "secret").read_bytes(),
        "write": lambda: (area / "new").write_bytes(b""),
        "create": lambda: os.mkdir(area / "folder"),
        "remove": lambda: (outside / "victim").unlink(),
        "rename": lambda: os.rename(outside / "victim", area / "victim"),
        "connect": connect,
        "look_up": lambda: socket.getaddrinfo("localhost", 9),
        "system": lambda: os.system(f"touch {outside}/executed"),
        "run": lambda: subprocess.run(["true"], check=True),
        "eval": lambda: eval(f"1 + 1  # {MARK}"),
        "compile": lambda: compile(payload(outside) + f"  # {MARK}", "x", "exec"),
        "import": lambda: runpy.run_path(str(step / "config.py")),
        "unpickle": lambda: pickle.loads((step / "checkpoint.pkl").read_bytes()),
        "unpickle_array": lambda: np.load(step / "params.npy", allow_pickle=True),
        "fill": lambda: np.ones(2**28),
        "read_by_tensorstore": read_by_tensorstore,
    }
    return lambda name: {"load": outcome(acts[name.name])}


def child(mode, area, *names):
    """Acts on each attacked checkpoint; prints a line of JSON about each."""
    import resource

    area = Path(area)
    # A bomb that goes off ends this process, not the machine.
    resource.setrlimit(resource.RLIMIT_DATA, (2**33, 2**33))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
    act = {"load": loading, "evaluate": evaluating}.get(mode, misbehaving)(area)
    if mode in ("load", "evaluate"):
        load(area / "attacks" / "nothing_at_all")  # imports and compiles
    compiled = os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["NUMBA_CACHE_DIR"]
    writable = [*compiled, "/dev/null", "/proc/self/clear_refs", f"{area}_scratch"]
    writable = [os.path.realpath(path) for path in writable]
    writable += [str(area / "attacks" / name / "evaluation_images") for name in names]
    tried = watch(area, writable) if mode != "misbehave_unwatched" else []
    os.path.exists(BEGINS)
    for name in names:
        workdir = area / "attacks" / name
        if workdir.exists():
            os.chdir(workdir)
        forget_peak()
        began = time.perf_counter()
        result = act(workdir)
        seconds = time.perf_counter() - began
        result |= {"name": name, "seconds": seconds, "peak": peak_bytes(), "tried": list(tried)}
        tried.clear()
        print(json.dumps(result), flush=True)


# ---- Tests ----


@pytest.fixture(scope="module")
def area(tmp_path_factory):
    """A folder with all attacks, images to evaluate, and what is not to be touched."""
    area = tmp_path_factory.mktemp("area").resolve()
    outside = area / MARK
    for folder in (outside, outside / "fold", outside / "array", area / "images", area / "masks"):
        folder.mkdir()
    Path(f"{area}_scratch").mkdir()
    (outside / "secret").write_bytes(b"secret")
    (outside / "victim").write_bytes(b"victim")
    picture, instances = synthetic_em(0, height=60, width=60)
    tifffile.imwrite(area / "images" / "a.tif", picture)
    tifffile.imwrite(area / "masks" / "a.tif", (instances > 0) * np.uint8(255))
    checkpoint.save(area / "good", a_state(), RECORD)
    for key, value in read_arrays(area / "good" / "checkpoints" / STEP / "params").items():
        if key.startswith("classes.bias/"):
            (outside / "array" / Path(key).name).write_bytes(value)
    for name, (make, _, sealed) in ATTACKS.items():
        shutil.copytree(area / "good", area / "attacks" / name)
        step = area / "attacks" / name / "checkpoints" / STEP
        make(step, outside)
        if not sealed:
            seal(step)
    for name, make in BESIDE.items():
        shutil.copytree(area / "good", area / "attacks" / name)
        make(area / "attacks" / name, outside)
    yield area
    # Deeper than Python's own function goes.
    subprocess.run(["rm", "-rf", area], check=True)


def snapshot(folder):
    """Kind, size, time and content of all there is in a folder."""
    found, folders = {}, [folder]
    while folders:  # `os.walk` recurs
        for entry in os.scandir(folders.pop()):
            status = entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            small = stat.S_ISREG(status.st_mode) and status.st_size < 2**24
            content = Path(entry.path).read_bytes() if small else None
            found[entry.path] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def environment(area):
    """In which programs write only into folders beside the area, which nobody looks at."""
    scratch = dict.fromkeys(("MPLCONFIGDIR", "TMPDIR"), f"{area}_scratch")
    scratch["NUMBA_CACHE_DIR"] = f"{area}_numba"
    settings = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return os.environ | scratch | settings


def run_child(mode, area, names, *prefix):
    """What the child prints of each."""
    process = subprocess.run(
        [*prefix, sys.executable, __file__, mode, area, *names],
        capture_output=True,
        text=True,
        env=environment(area),
        timeout=600,
        cwd=area,
    )
    results = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    assert process.returncode == 0 and len(results) == len(names), (
        process.returncode,
        process.stdout[-1000:],
        process.stderr[-3000:],
    )
    return results


def complaints(results, key):
    """What is wrong with how the attacks ended."""
    for result in results:
        name, ended = result["name"], result[key]
        says = ATTACKS[name][1]
        if says == "loads":
            right = ended == "loads"
        else:
            right = ended.startswith("refused: ") and re.search(says, ended) and "\n" not in ended
        if not right:
            yield f"{name}: {ended}, expected {says}"
        if result["tried"]:
            yield f"{name}: {result['tried']}"
        if result["seconds"] > SECONDS or result["peak"] > PEAK_BYTES:
            yield f"{name}: {result['seconds']:.1f} s, {result['peak'] / 2**30:.1f} GiB"


def test_attacks_load_as_harmless_or_are_refused(area):
    before = snapshot(area)
    results = run_child("load", area, ATTACKS)
    assert list(complaints(results, "load")) == []
    # Going on with training reads the optimiser's state too.
    ends = {result["name"]: result["restore"].split(":")[0] for result in results}
    assert {*ends.values()} == {"loads", "refused"}
    for name, end in ends.items():  # it does not read the record
        if ATTACKS[name][1] != "loads" and not name.startswith("described"):
            assert end == "refused", name
    assert snapshot(area) == before


def test_what_is_forbidden_is_noticed(area):
    acts = [
        *("read", "read_by_a_link", "write", "create", "remove", "rename", "connect", "look_up"),
        *("system", "run", "eval", "compile", "import", "unpickle", "unpickle_array"),
    ]
    before = snapshot(area)
    *results, filled = run_child("misbehave", area, [*acts, "fill"])
    for result in results:
        assert result["tried"] and result["load"].startswith("PermissionError"), result
    assert filled["peak"] > PEAK_BYTES and filled["load"] == "loads"
    assert snapshot(area) == before
    (area / MARK / "victim").touch()
    assert snapshot(area) != before


def trace(area, mode, names):
    """What strace sees of the child once it begins: the network, processes, files outside."""
    log = Path(f"{area}_scratch", "trace")
    tracing = ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", "trace=network,file,process"]
    results = run_child(mode, area, names, *tracing, "-o", log)
    lines = log.read_text(errors="replace").splitlines()
    log.unlink()
    begin = next(i for i, line in enumerate(lines) if BEGINS in line)
    outside = re.escape(str(area / MARK))
    seen = {"network": [], "processes": [], "outside": []}
    for line in lines[begin:]:
        if re.search(r"AF_INET6?\b", line):
            seen["network"].append(line)
        if re.search(r"\bexecve(at)?\(|\bfork\(|\bvfork\(", line):
            seen["processes"].append(line)
        # Where the name leads: strace adds it to the descriptor; names with .. lead there too.
        call = re.search(r'\b(?:open|openat|openat2|creat)\((?:AT_FDCWD<(.*?)>, )?"(.*?)"', line)
        names_it = call and os.path.normpath(os.path.join(call[1] or "", call[2])).startswith(
            str(area / MARK)
        )
        if names_it or re.search(rf"= \d+<{outside}", line):
            seen["outside"].append(line)
    return results, seen


strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.mark.slow
@strace
def test_strace_notices_what_python_does_not_see(area):
    acts = ["read_by_tensorstore", "connect", "run"]
    results, seen = trace(area, "misbehave_unwatched", acts)
    assert [result["load"].split(":")[0] for result in results] == [
        "loads",
        "ConnectionRefusedError",
        "loads",
    ]
    assert seen["network"] and seen["processes"] and seen["outside"]


@pytest.mark.slow
@strace
def test_attacks_under_strace(area):
    results, seen = trace(area, "load", ATTACKS)
    assert list(complaints(results, "load")) == []
    assert seen == {"network": [], "processes": [], "outside": []}


@pytest.mark.slow
def test_attacks_are_evaluated_or_refused_in_one_line(area):
    before = snapshot(area)
    results = run_child("evaluate", area, ATTACKS)
    for result in results:
        name, status, errors = result["name"], result["status"], result["errors"].strip()
        if ATTACKS[name][1] == "loads" and status == "SystemExit: 0":
            result["ended"] = "loads"
        elif status == "SystemExit: 2" and errors.startswith("eval.py: "):
            result["ended"] = "refused: " + errors.removeprefix("eval.py: ")
        else:
            result["ended"] = status + errors
    assert list(complaints(results, "ended")) == []
    for name in ("expressions_folder", "expressions_cell_tracking"):
        report = area / "attacks" / name / "evaluation_images" / "report.html"
        page = report.read_text(encoding="utf-8")
        assert "&lt;script&gt;__import__" in page and "&lt;img src" in page
        assert "<script" not in page and "<img src=x" not in page and "<b>__import__" not in page
    for name, (_, outcome, _) in ATTACKS.items():
        out = area / "attacks" / name / "evaluation_images"
        assert out.exists() == (outcome == "loads"), name
        if out.exists():
            shutil.rmtree(out)
    after = snapshot(area)
    workdirs = {str(area / "attacks" / name) for name in ATTACKS}  # whose time has changed
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= workdirs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing_at_all", 0),
        ("code_lying_around", 0),
        ("plain_files_absolute", 2),
        ("link_params__METADATA", 2),
        ("pipe_sha256.json", 2),
        ("described_width", 2),
    ],
)
def test_as_a_user_runs_it(name, expected, area):
    """In the folder itself, where Python would find modules that it looks for."""
    workdir = area / "attacks" / name
    before = snapshot(area / MARK)
    process = subprocess.run(
        [
            *(sys.executable, ROOT / "eval.py", f"--checkpoint={workdir}", f"--out={area / 'out'}"),
            *(f"--images={area / 'images'}", f"--labels={area / 'masks'}"),
        ],
        capture_output=True,
        text=True,
        env=environment(area),
        timeout=600,
        cwd=workdir,
    )
    assert process.returncode == expected, process.stderr
    assert (area / "out" / "report.html").exists() == (expected == 0)
    if expected:
        assert len(process.stderr.splitlines()) == 1
    shutil.rmtree(area / "out", ignore_errors=True)
    assert snapshot(area / MARK) == before


@pytest.fixture(scope="module")
def evaluated_beside(area):
    before = snapshot(area / MARK)
    results = {result["name"]: result for result in run_child("evaluate", area, BESIDE)}
    assert snapshot(area / MARK) == before
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_is_harmless_or_refused_in_one_line(name, evaluated_beside):
    result = evaluated_beside[name]
    lines = [line for line in result["errors"].splitlines() if line.startswith("eval.py: ")]
    assert result["tried"] == [] and "Traceback" not in result["errors"]
    assert result["status"] == "SystemExit: 0" or (
        result["status"] == "SystemExit: 2" and len(lines) == 1
    )
    assert result["seconds"] < SECONDS and result["peak"] < PEAK_BYTES


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="TensorStore bounds no node of an OCDBT index")
def test_an_index_of_long_names(area):
    """Names that begin with the same 60,000 letters, kept once in the file and whole in memory."""
    workdir = area / "attacks" / "index"
    shutil.copytree(area / "good", workdir)
    folder = workdir / "checkpoints" / STEP / "params"
    names = {"x" * 60_000 + f"{i:04}": b"" for i in range(5000)}
    write_arrays(folder, read_arrays(folder) | names)
    seal(workdir / "checkpoints" / STEP)
    good, bad = run_child("load", area, ["nothing_at_all", "index"])
    shutil.rmtree(workdir)
    assert bad["peak"] - good["peak"] < 2**27


VALUES = [
    *(None, True, 0, -1, 7, 10**9, 10**30, 10**400, 0.5, 1e308, 5e-324, math.nan, math.inf),
    *("", "a", "1", "\0", "\ud800", "\udcff", "a\nb", "x" * 5000, "$\\frac$ {{ 1 }} %s"),
    *([], {}, [None], [[1]], ["a", "b"], ["\0"], [True, True], [5, 2], [0, 10**9], [math.nan]),
    *({"": {}}, {"a": 1}, {"a": "b"}, {"loss": 0.5, "a": "b"}, dict.fromkeys(SPLITS, "ab")),
]


def spoilt(values):
    """JSON with each of its values missing, and each replaced by those above."""
    values = copy.deepcopy(values)
    inside = [values]
    while inside:
        inner = inside.pop()
        for key in [*inner] if isinstance(inner, dict) else range(len(inner)):
            good = inner[key]
            for value in VALUES:
                inner[key] = value
                yield values
            del inner[key]
            yield values
            if isinstance(inner, dict):
                inner[key] = good
            else:
                inner.insert(key, good)
            if isinstance(good, dict | list):
                inside.append(good)


def failing(*_, **__):
    raise OSError("no network")


def is_declared(value, kind):
    """Whether a value is of the type that a field declares."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(is_declared(value, k) for k in inner)
    if dataclasses.is_dataclass(kind):
        fields = [f for f in dataclasses.fields(kind) if f.name not in ("parent", "name")]  # Flax's
        return type(value) is kind and all(
            is_declared(getattr(value, f.name), f.type) for f in fields
        )
    if kind is float:
        return type(value) in (int, float)
    if origin is dict:
        inner, parts = inner[1:], value.values() if type(value) is dict else None
    elif origin in (list, tuple):
        parts = value if type(value) is origin else None
    else:
        return kind is typing.Any or type(value) is kind
    return parts is not None and all(is_declared(part, inner[0]) for part in parts)


@pytest.mark.parametrize(
    "data",
    [
        Synthetic(height=30, width=30, train=(0, 1), validation=(1, 2), test=(2, 3)),
        Folder(images="images", labels="masks"),
        CellTracking(dataset="frames", partly_annotated=("01/000",)),
    ],
    ids=lambda data: data.source,
)
def test_a_record_is_as_declared_or_refused_and_so_is_its_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("isbi2012", "cell_tracking"):  # by default data are downloaded
        monkeypatch.setattr(f"unet_jax.data.{name}.download", failing)
    training = a_training(UNet(**FIELDS), data=data, class_colours=("red", "#00ff00"))
    training = replace(training, started_from=SOURCE, images=training.data)
    good = replace(RECORD, training=training).to_json()
    assert read_record(good).to_json() == good
    ends = Counter()
    for values in spoilt(good):
        try:
            record = read_record(json.loads(json.dumps(values)))
        except InputError as error:
            ends["refused"] += 1
            assert len(error.args) == 1 and error.args[0].isprintable()
            continue
        ends["read"] += 1
        assert is_declared(record, Record), values
        assert repr(read_record(record.to_json())) == repr(record)
        if record.training and record.training.config.data != data:
            ends["data"] += 1
            try:
                read_splits(record.training.config.data, 2)
            except InputError as error:
                assert all(line.isprintable() for line in error.args)
    assert min(ends["refused"], ends["read"]) > 200 and ends["data"] > 10, ends


def test_rows_of_a_log_have_numbers(tmp_path):
    good = {"step": 1, "loss": math.inf, "validation": {"loss": 0.5, "pixel_error": 0}}
    (tmp_path / "log.jsonl").write_text(ROWS + json.dumps(good) + "\n")
    assert read_log(tmp_path / "log.jsonl") == [good]


def test_messages_do_not_steer_the_terminal(area):
    for name in ("manifest_additional", "described_newline_in_a_field"):
        with pytest.raises(InputError) as caught:
            load(area / "attacks" / name)
        assert str(caught.value).isprintable()


def test_links_are_not_cleared_up(area, tmp_path):
    """Going on with a run removes what a kill left of saves: nothing elsewhere."""
    elsewhere = tmp_path / "elsewhere" / "folder"
    elsewhere.mkdir(parents=True)
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="checkpoints: is a link"):
        checkpoint.remove_unfinished(workdir)
    with pytest.raises(InputError, match="checkpoints: is a link"):
        checkpoint.save(workdir, None, RECORD)
    (workdir / "checkpoints").unlink()
    (workdir / "checkpoints").mkdir()
    (workdir / "checkpoints" / "000001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((InputError, OSError)):
        checkpoint.remove_unfinished(workdir)
    assert elsewhere.is_dir()


if __name__ == "__main__":
    child(*sys.argv[1:])
