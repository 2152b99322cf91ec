import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from unet_jax.configuration import check_config, with_added_keys

CONFIGS = sorted(p.stem for p in (Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_valid_and_says_how_to_run_it(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert isinstance(config, ConfigDict)
    check_config(config)
    assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_is_explained_in_one_place(name):
    explained = Path(__file__).parents[1].joinpath("docs", "configuration.md").read_text()
    for part, values in importlib.import_module(f"configs.{name}").get_config().items():
        keys = [f"{part}.{key}" for key in values] if isinstance(values, ConfigDict) else [part]
        for key in keys:
            assert f"`{key}`" in explained


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_version_0_1_0_is_read_as_one_of_today(name):
    config = importlib.import_module(f"configs.{name}").get_config().to_dict()
    before = {part: dict(v) if isinstance(v, dict) else v for part, v in config.items()}
    for part, key in (
        ("train", "start_from"),
        ("train", "freeze_contracting_path"),
        ("data", "minus_one"),
    ):
        before[part].pop(key, None)
    assert with_added_keys(before) == config == with_added_keys(config)


def test_the_em_configuration_is_the_paper():
    config = importlib.import_module("configs.em").get_config()
    assert (config.model.width, config.model.depth, config.model.classes) == (64, 5, 2)
    assert config.model.dropout_rate == 0.5
    assert (config.weight_map.w0, config.weight_map.sigma) == (10, 5)
    assert config.augmentation.elastic_pixels == 10
    assert config.optimiser.momentum == 0.99
    assert (config.train.tile_side, config.train.batch_size) == (572, 1)
    # Test slices are never trained on.
    first, second, third = config.data.train, config.data.validation, config.data.test
    assert (first, second, third) == ((0, 22), (22, 25), (25, 30))
