import ast
import importlib
import json
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from unet_jax.checked_settings import as_dict
from unet_jax.configuration import Configuration, read_configuration
from unet_jax.errors import InputError
from unet_jax.hardware import fastest_dtype
from unet_jax.instances import InstanceSettings
from unet_jax.network import UNet
from unet_jax.sources import CellTracking, Folder, Isbi2012, Synthetic, read_data

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config()


def resolved(config):
    """The values of a file with what `auto` stands for on this machine."""
    values = config.to_dict()
    assert values["model"]["dtype"] == "auto"
    values["model"]["dtype"] = fastest_dtype()
    return values


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_valid_and_says_how_to_run_it(name):
    config = config_of(name)
    assert isinstance(config, ConfigDict)
    # Each value is there, to be given another one on the command line.
    assert read_configuration(config).to_dict() == resolved(config)
    assert f"--config={name} " in importlib.import_module(f"configs.{name}").__doc__


def table_rows():
    """Of the page: the keys of a row, the configuration that its values are of, and those."""
    rows, config = [], None
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)][1:-1]
        if cells and cells[0] == "value":
            config = re.fullmatch(r"in `(\w+)\.py`", cells[-1])[1]
        elif cells and config and cells[0].startswith("`"):
            own = re.fullmatch(r"in `(\w+)\.py`: (.*)", cells[-1])
            keys = re.findall(r"`([\w.]+)`", cells[0])
            rows.append((keys, *(own.groups() if own else (config, cells[-1]))))
        elif not cells:
            config = None
    return rows


def stated(text):
    """The values that the last cell of a row states."""
    if text == "empty":
        return [""]
    if re.fullmatch(r"[\d,]+", text):
        return [int(text.replace(",", ""))]
    values = []
    for value in re.findall(r"`([^`]*)`", text) or [text]:
        try:
            values.append(ast.literal_eval(value))
        except (SyntaxError, ValueError):
            values.append(value)  # a text, such as 01
    return values


def test_the_page_has_all_settings_with_their_values_and_no_others():
    default = Configuration()
    settings = {
        f"{part}.{name}"
        for part, values in default.to_dict().items()
        if isinstance(values, dict)
        for name in values
    }
    for kind in (Isbi2012, Synthetic, Folder, CellTracking):
        settings |= {f"data.{name}" for name in as_dict(kind())}
    settings |= {f.name for f in fields(Configuration) if type(getattr(default, f.name)) is tuple}
    assert {"model.width", "train.start_from", "class_names", "data.labels"} <= settings

    rows = table_rows()
    explained = [key for keys, _, _ in rows for key in keys]
    assert sorted(explained) == sorted(settings), "each once"
    without = set()
    for keys, name, text in rows:
        if not text:
            without |= set(keys)
            continue
        for key, value in zip(keys, stated(text), strict=True):
            expected = config_of(name)
            for part in key.split("."):
                expected = expected[part]
            if isinstance(value, tuple) and ... in value:  # it goes on
                value, expected = value[: value.index(...)], expected[: value.index(...)]
                assert value
            assert (value, type(value)) == (expected, type(expected)), key
    assert without <= {"data.seed", "data.height", "data.width"}


def test_the_values_of_the_page_are_the_defaults():
    """Where a file has a value of its own, it says so."""
    em, default = config_of("em").to_dict(), Configuration().to_dict()
    assert em.pop("model") == default.pop("model") | {"dtype": "auto"} and em == default
    assert config_of("folder").data.to_dict() == as_dict(Folder())
    assert config_of("demo").data.to_dict() == as_dict(Synthetic())
    hela, default = config_of("dic_hela").data.to_dict(), as_dict(CellTracking())
    own = {key for key in hela if hela[key] != default[key]}
    assert hela.keys() == default.keys() and own == {"scale", "partly_annotated"}


def test_what_is_not_given_is_as_by_default():
    assert read_configuration({}) == Configuration()
    given = {"model": {"width": 8}, "train": {}, "data": {"source": "folder", "scale": 0.5}}
    found = read_configuration(given)
    assert found.model.width == 8 and found.model.depth == 5
    assert found.data == Folder(scale=0.5) and found.train == Configuration().train
    assert read_configuration(found) is found
    assert read_configuration(found.to_dict()) == found
    assert read_configuration(found.to_json()) == found, "lists become tuples"


def test_numbers_out_of_an_array_are_numbers():
    array = np.array([3])
    settings = InstanceSettings(np.linspace(0, 1, 3)[1], smallest_cell=array[0], border=array[0])
    assert settings == InstanceSettings(0.5, smallest_cell=3, border=3)
    assert json.loads(json.dumps(as_dict(settings))) == as_dict(settings)
    with pytest.raises(InputError, match="^largest_hole must be a whole number, not 0.5.$"):
        InstanceSettings(largest_hole=np.float32(0.5))


def test_a_network_is_checked_as_a_part_of_the_configuration():
    with pytest.raises(InputError, match="^width must be a whole number from 1 to 4096, not 0.$"):
        Configuration(model=UNet(width=0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "isbi"}, "isbi2012, cell_tracking, folder or synthetic, not 'isbi'."),
        ({"scale": 0.5}, "isbi2012, cell_tracking, folder or synthetic, not None."),
        (
            {"source": "isbi2012", "height": 3},
            "config.data.height is not known; the known keys are source, scale, train, "
            "validation, test.",
        ),
        ({"source": "folder", "images": 3}, "config.data.images must be text, not 3."),
        (
            {"source": "cell_tracking", "partly_annotated": "all"},
            "config.data.partly_annotated must be names of frames, not all.",
        ),
        (
            {"source": "folder", "test_fraction": None},
            "config.data.test_fraction must be a number between 0 and 1, not None.",
        ),
        ({"source": "synthetic", "seed": 0.5}, "config.data.seed must be a whole number, not 0.5."),
        (
            {"source": "synthetic", "scale": 20},
            "config.data.scale must be above 0 and at most 10, not 20.",
        ),
    ],
)
def test_bad_values_of_a_source_are_told(values, message):
    with pytest.raises(InputError) as refusal:
        read_data(values)
    (line,) = refusal.value.args
    assert line.endswith(message)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_version_0_1_0_is_read_as_one_of_today(name):
    config = resolved(config_of(name))
    before = {part: dict(v) if isinstance(v, dict) else v for part, v in config.items()}
    del before["class_colours"]
    for part, key in (
        ("train", "start_from"),
        ("train", "freeze_contracting_path"),
        ("train", "deterministic"),
        ("data", "minus_one"),
    ):
        before[part].pop(key, None)
    assert read_configuration(before).to_dict() == config == read_configuration(config).to_dict()


def test_auto_is_what_the_device_is_fastest_in(monkeypatch):
    for platform, capability, expected in (
        ("cpu", None, "float32"),
        ("gpu", "7.5", "float32"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "10.0", "bfloat16"),
        ("gpu", "gfx90a", "bfloat16"),
        ("tpu", None, "bfloat16"),
    ):
        device = SimpleNamespace(platform=platform)
        if capability:
            device.compute_capability = capability
        monkeypatch.setattr("jax.devices", lambda device=device: [device])
        found = read_configuration({"model": {"dtype": "auto", "width": 2}}).model
        assert (found.dtype, found.width) == (expected, 2), capability
        assert Configuration(model=UNet(dtype="auto")).model.dtype == expected
    with pytest.raises(InputError, match="model.dtype must be auto, float32 or bfloat16, not f4"):
        read_configuration({"model": {"dtype": "f4"}})


def test_a_part_that_is_no_group_of_values_is_told():
    with pytest.raises(InputError, match="config.model must be a group of values, not 3."):
        read_configuration({"model": 3})
    with pytest.raises(InputError, match="config.data must be a group of values, not 'images'."):
        read_configuration({"data": "images"})


def test_the_em_configuration_is_the_paper():
    config = config_of("em")
    assert (config.model.width, config.model.depth, config.model.classes) == (64, 5, 2)
    assert config.model.dropout_rate == 0.5
    assert (config.weight_map.w0, config.weight_map.sigma) == (10, 5)
    assert config.augmentation.elastic_pixels == 10
    assert config.optimiser.momentum == 0.99
    assert (config.train.tile_side, config.train.batch_size) == (572, 1)
    # Test slices are never trained on.
    first, second, third = config.data.train, config.data.validation, config.data.test
    assert (first, second, third) == ((0, 22), (22, 25), (25, 30))
