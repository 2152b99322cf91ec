import logging
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from matplotlib.figure import Figure

from configs import folder
from tests.reliability.conftest import TINY
from tests.reliability.test_bad_inputs import call
from tests.test_figures import contains, pixels
from unet_jax import train_step
from unet_jax.checkpoint import saved_steps
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.errors import InputError
from unet_jax.figures import IGNORED_COLOUR, TRUTH_COLOUR, class_colours
from unet_jax.run import preview as preview_module
from unet_jax.run.fit import cross_validate, fit
from unet_jax.run.preview import preview


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_a_preview_shows_the_tiles_that_the_run_trains_on(tiny_config, tmp_path, monkeypatch):
    tiny_config.train.steps = 6  # two epochs
    # So little that it takes but a part of each image.
    tiny_config.train.tile_side, tiny_config.augmentation.elastic_pixels = 24, 0.5
    tiny_config.train.validate_every = 6
    shown, trained = [], []
    draw, augment = preview_module._draw_tile, train_step.augment

    def record(axes, tile, coordinates, config):
        shown.append((tile, coordinates))
        draw(axes, tile, coordinates, config)

    def recorded(*arguments, **options):
        tile = augment(*arguments, **options)
        jax.debug.callback(trained.append, tile)
        return tile

    monkeypatch.setattr(preview_module, "_draw_tile", record)
    found = preview(tiny_config, tmp_path)
    assert found.picture == tmp_path / "preview.png" and f"Look at {found.picture}" in str(found)
    assert {p.name for p in tmp_path.iterdir()} == {"preview.png", "preview.txt"}
    first = (tmp_path / "preview.png").stat()

    # The folder is not taken for that of a run.
    monkeypatch.setattr(train_step, "augment", recorded)
    assert fit(tiny_config, tmp_path).status == 0
    jax.effects_barrier()
    assert len(shown) == len(trained) == 6
    for tile, _ in shown:
        (same,) = [t for t in trained if np.allclose(t.image, tile.image, atol=1e-4)]
        assert (same.labels == tile.labels).mean() > 0.999
        np.testing.assert_allclose(same.weights, tile.weights, rtol=1e-4)

    # Again in the folder of a run: the preview is replaced, the run stays.
    monkeypatch.setattr(preview_module, "_figure", lambda *arguments: Figure())
    preview(tiny_config, tmp_path)
    assert (tmp_path / "preview.png").stat().st_ino != first.st_ino
    assert saved_steps(tmp_path)


def test_the_grid_is_that_of_the_tile(tiny_config, tmp_path, monkeypatch):
    tiny_config.augmentation.contrast_std = tiny_config.augmentation.brightness_std = 0.0
    seen = []
    monkeypatch.setattr(preview_module, "_draw_tile", lambda *arguments: seen.append(arguments))
    ramp = np.arange(60.0)[:, None] + np.zeros((1, 60))
    original = preview_module.annotated_images

    def with_ramp(*arguments):
        images = original(*arguments)
        return replace(images, image=jnp.resize(ramp, images.image.shape))

    monkeypatch.setattr(preview_module, "annotated_images", with_ramp)
    preview(tiny_config, tmp_path)
    assert len(seen) == 6
    for _, tile, (rows, _), _ in seen:  # an image of its row numbers shows where it was taken
        np.testing.assert_allclose(tile.image[..., 0], rows, atol=1e-3)


def folder_config(path, *, count=5, size=(40, 48), image=lambda grey: grey, mask=None):
    """A folder of made-up pictures, smaller than the tile."""
    for i in range(count):
        grey, cells = synthetic_em(i, height=size[0], width=size[1])
        for name, array in (("images", image(grey)), ("masks", mask(cells))):
            (path / name).mkdir(exist_ok=True, parents=True)
            tifffile.imwrite(path / name / f"{i}.tif", array)
    config = folder.get_config()
    config.model.width, config.model.depth = 2, 2
    config.data.images, config.data.labels = str(path / "images"), str(path / "masks")
    config.train.tile_side = 44
    return config


def test_several_channels_and_classes_with_names_shares_and_ignored_pixels(tmp_path, caplog):
    def classes(cells):
        mask = np.minimum(cells, 2).astype(np.uint8)
        mask[:10] = 255
        return mask

    config = folder_config(
        tmp_path, image=lambda grey: np.stack([grey, grey // 2, 255 - grey], -1), mask=classes
    )
    config.model.classes = 3
    config.class_names = ("membrane", "soma", "axon")
    config.data.mask_rule, config.data.ignore_value = "classes", 255
    assert preview(config, tmp_path / "run").picture == tmp_path / "run" / "preview.png"
    picture = pixels(tmp_path / "run" / "preview.png")
    for colour in (*class_colours(3), rgb(IGNORED_COLOUR)):
        assert contains(picture, colour) > 1000
    assert contains(picture, rgb(TRUTH_COLOUR)) > 100
    text = (tmp_path / "run" / "preview.txt").read_text()
    assert "share of axon" in text and "25.0 %" in text  # 10 of 40 rows are ignored


def test_two_channels_one_scale_and_a_single_training_image(tmp_path):
    config = folder_config(
        tmp_path,
        count=3,
        size=(40, 40),
        image=lambda grey: np.stack([grey] * 2),
        mask=lambda cells: np.stack([cells] * 2).astype(np.uint16),
    )
    config.data.mask_rule, config.data.scale = "instances", 1.5
    preview(config, tmp_path / "run")
    text = (tmp_path / "run" / "preview.txt").read_text()
    assert "scaled by 1.5" in text
    assert pixels(tmp_path / "run" / "preview.png").shape[1] > 2000


def inverted(cells):
    mask = np.full(cells.shape, 255, np.uint8)
    mask[3:9, 5:12] = mask[15:22, 20:27] = mask[25:32, 5:12] = 0
    return mask


def test_warnings_are_in_the_picture_and_in_the_text(tmp_path):
    config = folder_config(tmp_path, mask=inverted)
    config.data.mask_rule = "binary"
    found = preview(config, tmp_path / "run")
    assert any("were swapped" in doubt for doubt in found.doubts)
    text = (tmp_path / "run" / "preview.txt").read_text()
    assert "Warning: " in text and "were swapped" in text
    assert text == found.text + "\n" and str(found).startswith(text)
    assert contains(pixels(tmp_path / "run" / "preview.png"), (0xB0, 0, 0)) > 100


def test_names_that_are_no_text_or_look_like_formulas(tmp_path):
    config = folder_config(tmp_path, mask=inverted)
    config.class_names = ("$a$ {", "a $b$ }")
    for there in (tmp_path / "images", tmp_path / "masks"):
        for number, file in enumerate(sorted(there.iterdir())):
            name = [f"dose_$5_{{well_${number}", f"caf\udce9 {number}"][number % 2]
            file.rename(there / f"{name}{file.suffix}")
    found = preview(config, tmp_path / "run")
    assert found.picture.exists() and (tmp_path / "run" / "preview.txt").exists()


def test_training_tells_once_what_the_preview_doubts(tmp_path, caplog):
    config = folder_config(tmp_path, mask=inverted)
    picture = tmp_path / "images" / "again.tif"
    tifffile.imwrite(picture, tifffile.imread(tmp_path / "images" / "0.tif"))
    tifffile.imwrite(tmp_path / "masks" / "again.tif", np.eye(40, 48, dtype=np.uint8) * 255)
    config.data.mask_rule = "binary"
    config.train.steps = config.train.validate_every = 2
    config.optimiser.warmup_steps = 0
    found = preview(config, tmp_path / "run")
    told = [" ".join(line.split()) for line in str(found).split("\n\n")]
    told = [line for line in told if line.startswith("Warning")]
    assert told == [f"Warning: {doubt}" for doubt in found.doubts]
    assert "were swapped" in told[0] and "is the same picture as" in told[-1]

    def warnings(train, **settings):
        caplog.clear()
        train(config, tmp_path / "run", **settings)
        return [message for message in caplog.messages if message.startswith("Warning")]

    assert warnings(fit) == told
    config.train.steps = 3
    assert warnings(fit) == []  # the run goes on
    shutil.rmtree(tmp_path / "run")
    of_folds = warnings(cross_validate, folds=2)
    assert sum("were swapped" in line for line in of_folds) == 1


def test_bad_data_is_refused_as_in_training(tiny_config, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        config = folder_config(tmp_path, mask=lambda cells: cells.astype(np.uint8))
        config.data.mask_rule = "binary"
        refusals = []
        for program in (preview, fit):
            with pytest.raises(InputError) as refusal:
                program(config, tmp_path / "run")
            refusals.append(refusal.value.args)
    assert refusals[0] == refusals[1]
    assert not (tmp_path / "run").exists()
    tiny_config.model.width = 0
    with pytest.raises(InputError, match="model.width"):
        preview(tiny_config, tmp_path / "run")
    tiny_config.model.width = 2
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        preview(tiny_config, tmp_path / "file" / "run")


def test_the_command_line_knows_preview_but_not_of_folds(tmp_path):
    options = *TINY, f"--workdir={tmp_path / 'run'}", "--preview"
    status, errors = call("train.py", *options, "--folds=2")
    assert status == 2
    assert "--preview shows the same data for all folds" in "\n".join(errors)
    assert not (tmp_path / "run").exists()
    status, errors = call("train.py", *options)
    assert (status, errors) == (0, [])
    assert (tmp_path / "run" / "preview.png").exists()
