import json

import imagecodecs
import numpy as np
import pytest
import tifffile

from unet_jax import load, predict_tiled
from unet_jax.data.splits import read_splits
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.errors import InputError
from unet_jax.evaluate import evaluate
from unet_jax.fit import fit
from unet_jax.scores import em_errors

DEFAULTS = dict(step="best", averaging="none", images=None, labels=None, mask_rule=None, out=None)


@pytest.fixture
def workdir(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def own_data(tmp_path):
    """Images and masks of two sizes, 16-bit TIFF and PNG."""
    folders = tmp_path / "images", tmp_path / "masks"
    for folder in folders:
        folder.mkdir()
    for i, size in enumerate([(50, 60), (70, 40)]):
        picture, instances = synthetic_em(i, height=size[0], width=size[1])
        tifffile.imwrite(folders[0] / f"{i}.tif", picture.astype(np.uint16) * 200)
        mask = np.where(instances > 0, 255, 0).astype(np.uint8)
        (folders[1] / f"{i}.png").write_bytes(imagecodecs.png_encode(mask))
    return folders


def test_scores_of_the_test_split(workdir, tiny_config, capsys):
    assert evaluate(workdir, **DEFAULTS) == 0
    result = json.loads((workdir / "evaluation" / "none.json").read_text())
    examples = read_splits(tiny_config.data, 2)["test"]
    model = load(workdir)
    expected = em_errors(examples, [1 - predict_tiled(model, e.image)[..., 0] for e in examples])
    assert result["examples"] == ["picture 5", "picture 6"]
    assert result["pixel_error"] == pytest.approx(expected["pixel_error"])
    assert result["rand_error"] == pytest.approx(expected["rand_error"])
    assert set(result["baselines"]) == {"one class everywhere", "blurred grey value"}
    assert result["tile_side"] > 0 and result["step"] == 4 and "jax" in result["versions"]
    assert (workdir / "evaluation" / "none.png").stat().st_size > 10_000
    assert f"{expected['pixel_error']['value']:.4f}" in capsys.readouterr().out


def test_own_images_and_masks(workdir, own_data, tmp_path):
    images, labels = own_data
    out = tmp_path / "out"
    settings = DEFAULTS | dict(images=images, labels=labels, out=out, averaging="rotations")
    assert evaluate(workdir, **settings) == 0
    result = json.loads((out / "rotations.json").read_text())
    assert result["examples"] == ["0", "1"] and result["averaging"] == "rotations"
    assert not (workdir / "evaluation").exists()


def test_bad_input_writes_nothing(workdir, own_data, tmp_path):
    images, labels = own_data
    out = tmp_path / "out"

    def refused(**settings):
        with pytest.raises(InputError) as refusal:
            evaluate(workdir, **DEFAULTS | dict(out=out) | settings)
        assert "\n" not in str(refusal.value) and not out.exists()
        return str(refusal.value)

    assert "go together" in refused(images=images)
    assert "--mask_rule with them" in refused(mask_rule="binary")
    assert "no step 3" in refused(step="3")
    assert "mask_rule" in refused(images=images, labels=labels, mask_rule="guess")
    assert "is not a folder" in refused(images=tmp_path / "missing", labels=labels)
    tifffile.imwrite(images / "0.tif", np.zeros((50, 60, 3), np.uint8) + np.uint8([1, 2, 3]))
    tifffile.imwrite(images / "1.tif", np.zeros((70, 40, 3), np.uint8) + np.uint8([1, 2, 3]))
    assert "channel" in refused(images=images, labels=labels)


def test_the_test_split_is_the_one_of_the_run(tiny_config, own_data, tmp_path):
    """Files that come later neither join it nor push training images into it."""
    images, labels = own_data
    for i in range(2, 5):
        picture, instances = synthetic_em(i, height=50, width=50)
        tifffile.imwrite(images / f"{i}.tif", picture)
        tifffile.imwrite(labels / f"{i}.tif", (instances > 0).astype(np.uint8) * 255)
    use_folder(tiny_config, images, labels, mask_rule="binary", ignore_value=-1)
    workdir = tmp_path / "run"
    fit(tiny_config, workdir)
    names = load(workdir).description["splits"]["test"]
    for i in range(5, 9):
        tifffile.imwrite(images / f"{i}.tif", picture)
        tifffile.imwrite(labels / f"{i}.tif", (instances > 0).astype(np.uint8) * 255)
    evaluate(workdir, **DEFAULTS)
    result = json.loads((workdir / "evaluation" / "none.json").read_text())
    assert result["examples"] == names

    for folder in own_data:
        next(folder.glob(f"{names[0]}.*")).unlink()
    with pytest.raises(InputError, match=f"{names[0]} of the run's test split"):
        evaluate(workdir, **DEFAULTS)


def use_folder(config, images, labels, *, mask_rule, ignore_value):
    with config.unlocked():
        config.data = dict(
            source="folder",
            images=str(images),
            labels=str(labels),
            mask_rule=mask_rule,
            ignore_value=ignore_value,
            validation_fraction=0.25,
            test_fraction=0.25,
            split_seed=0,
        )
    config.train.steps = config.train.validate_every = 4


def test_training_on_a_folder(tiny_config, own_data, tmp_path):
    """Three classes with ignored pixels, images of several sizes and two channels."""
    images, labels = own_data
    rng = np.random.default_rng(0)
    for i, size in enumerate([(50, 60), (70, 40), (45, 45), (60, 61)]):
        image = rng.random((*size, 2)).astype(np.float32)
        layout = dict(photometric="minisblack", planarconfig="contig")
        tifffile.imwrite(images / f"{i}.tif", image, **layout)
        (labels / f"{i}.png").unlink(missing_ok=True)
        mask = rng.choice(np.uint8([0, 1, 2, 200]), size)
        tifffile.imwrite(labels / f"{i}.tif", mask)
    tiny_config.model.classes = 3
    tiny_config.class_names = ("background", "nucleus", "cell")
    use_folder(tiny_config, images, labels, mask_rule="classes", ignore_value=200)
    workdir = tmp_path / "run"
    assert fit(tiny_config, workdir) == 0
    assert evaluate(workdir, **DEFAULTS) == 0
    result = json.loads((workdir / "evaluation" / "none.json").read_text())
    assert set(result["intersection_over_union"]) <= {"background", "nucleus", "cell"}
    model = load(workdir)
    assert predict_tiled(model, rng.random((33, 34, 2))).shape == (33, 34, 3)
