import csv
import json
import shutil
from dataclasses import replace

import imagecodecs
import jax
import numpy as np
import pytest
import tifffile

from unet_jax import load, predict_tiled
from unet_jax.checked_settings import as_dict
from unet_jax.checkpoint import load_members
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_splits
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.errors import InputError
from unet_jax.evaluation import images as images_module
from unet_jax.evaluation.evaluate import evaluate
from unet_jax.evaluation.images import Part, seen_before, select
from unet_jax.evaluation.instance_tuning import tune, tune_instances
from unet_jax.evaluation.scoring import measure, score
from unet_jax.instances import InstanceSettings, find_cells
from unet_jax.metrics import pixel_error
from unet_jax.metrics.scores import em_counts, em_scores, em_values, seg_score
from unet_jax.run.fit import cross_validate, fit
from unet_jax.sources import read_data

METRICS = ("pixel_error", "rand_error", "warping_error", "warping_error_2016", "v_rand", "v_info")


def report(folder):
    names = {"report.html", "report.json", "report.csv", "examples.png"}
    assert {p.name for p in folder.iterdir()} == names
    result = json.loads((folder / "report.json").read_text())
    together, *images = csv.DictReader((folder / "report.csv").read_text().splitlines())
    assert together.pop("image") == "all images"
    assert [row.pop("image") for row in images] == [image["name"] for image in result["images"]]
    for row, image in zip(images, result["images"], strict=True):
        for name, value in row.items():
            assert value == ("" if image[name] is None else str(image[name]))
    for kind, count in result["cell_errors"].items():
        assert together[kind] == str(count) == str(sum(image[kind] for image in result["images"]))
    return result


@pytest.fixture
def workdir(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "run", command="python train.py")
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


def as_json(value):
    return json.loads(json.dumps(value))


def test_scores_of_the_images_left_out(workdir, tiny_config, capsys):
    evaluation = evaluate(workdir, averaging=["none", "symmetries"])
    result = report(workdir / "evaluation")
    assert evaluation.report == workdir / "evaluation" / "report.html"
    assert as_json(evaluation.record()) == result and result["command"] is None
    page = evaluation.report.read_text(encoding="utf-8")
    assert "Evaluation command" in page and "the command was not recorded" in page
    examples = read_splits(read_data(tiny_config.data), 2)["test"]
    model = load(workdir)
    for averaging in ("none", "symmetries"):
        cell = [1 - predict_tiled(model, e.image, averaging=averaging)[..., 0] for e in examples]
        expected = em_scores(em_counts(examples, cell))
        for metric in METRICS:
            curve = result["scores"][averaging][metric]
            assert curve["value"] == expected[metric].value
            assert curve["values"] == list(expected[metric].values)
        cells = [find_cells(p, InstanceSettings()) for p in cell]
        seg = seg_score(examples, cells)
        assert result["scores"][averaging]["seg"] == as_json(seg._asdict())
    # Of single images, as the last averaging has them.
    assert [row["name"] for row in result["images"]] == ["picture 5", "picture 6"]
    (alone,) = em_counts(examples[1:], cell[1:])
    assert result["images"][1].items() >= em_values(alone, expected).items()
    assert result["images"][1]["cells"] == examples[1].instances.max()
    assert result["images"][1]["found_cells"] == cells[1].max()

    assert set(result["baselines"]) == {"one class everywhere", "blurred grey value"}
    assert result["tile_side"] > 0 and result["step"] == 4 and "jax" in result["versions"]
    assert result["training"]["command"] == "python train.py"
    assert result["instances"] == {**as_dict(InstanceSettings()), "tuned": False}
    assert capsys.readouterr().out == ""
    text = str(evaluation)
    assert f"{expected['v_rand'].value:.4g}" in text and "report.html" in text


def test_own_images_and_masks(workdir, own_data, tmp_path):
    images, labels = own_data
    out = tmp_path / "out"
    evaluate(
        str(workdir), images=str(images), labels=str(labels), out=str(out), averaging=["rotations"]
    )
    result = report(out)
    assert [row["name"] for row in result["images"]] == ["0", "1"]
    assert result["averaging"] == "rotations" and list(result["scores"]) == ["rotations"]
    assert not list(workdir.glob("evaluation*"))


def test_arrays_in_memory_are_scored_as_the_same_images_in_files(workdir, tiny_config):
    evaluation = evaluate(workdir)
    examples = read_splits(read_data(tiny_config.data), 2)["test"]
    probabilities = [predict_tiled(load(workdir), example.image) for example in examples]
    images = measure(examples, probabilities, InstanceSettings())
    assert score(images, ["membrane", "cell"]).values() == evaluation.scores["none"].values()


def negative_controls(own_data, numbers=(2, 3)):
    """Noise with empty masks beside the images, or in their place."""
    for i in numbers:
        noise = np.random.default_rng(i).integers(0, 200, (44, 52), np.uint8)
        tifffile.imwrite(own_data[0] / f"{i}.tif", noise)
        tifffile.imwrite(own_data[1] / f"{i}.tif", np.zeros((44, 52), np.uint8))


def test_images_without_a_cell_are_left_out_and_counted(workdir, own_data, tmp_path):
    images, labels = own_data
    evaluation = evaluate(workdir, images=images, labels=labels, out=tmp_path / "before")
    before = report(tmp_path / "before")
    assert before["without_cells"] == before["with_one_cell"] == 0
    assert "left out" not in str(evaluation)
    negative_controls(own_data)
    evaluation = evaluate(workdir, images=images, labels=labels, out=tmp_path / "out")
    result = report(tmp_path / "out")
    assert result["without_cells"] == 2
    scores = result["scores"]["none"]
    for metric in ("rand_error", "v_rand", "v_info"):
        assert scores[metric] == before["scores"]["none"][metric]
        assert [row[metric] is None for row in result["images"]] == [False, False, True, True]
    for row in result["images"][2:]:
        assert row["cells"] == 0 and row["pixel_error"] in (0, 1) and row["warping_error"] == 0
        assert row["seg"] is None and row["mean_iou"] <= 1
    said = "2 of 4 images have no annotated cell and are left out of Rand error, V_rand and V_info"
    assert said in str(evaluation)
    html = (tmp_path / "out" / "report.html").read_text()
    assert said in html and "Images without an annotated cell (2) were left out" in html


def test_images_that_are_all_without_a_cell(workdir, own_data, tmp_path):
    images, labels = own_data
    negative_controls(own_data, (0, 1))
    for mask in labels.glob("*.png"):
        mask.unlink()
    evaluation = evaluate(workdir, images=images, labels=labels, out=tmp_path / "out")
    result = report(tmp_path / "out")
    found = [row["found_cells"] for row in result["images"]]
    for scores in (result["scores"]["none"], *result["images"]):
        assert [scores[metric] for metric in (*METRICS, "seg")] == [None] * 7
    assert result["scores"]["none"]["mean_iou"]["value"] > 0
    assert list(result["baselines"].values()) == [{}, {}]
    said = "No cell is annotated in these 2 images, so only IoU and Dice are defined; the network "
    said += f"finds {sum(found)} cell"
    assert said in str(evaluation)
    html = (tmp_path / "out" / "report.html").read_text()
    assert said in html and "Ranked by mean IoU" in html and "with which cells are found" in html


def test_settings_are_tuned_on_the_validation_split_alone(
    workdir, tiny_config, monkeypatch, capsys
):
    seen = []

    def predicting(model, image, **settings):
        seen.append(image)
        return predict_tiled(model, image, **settings)

    monkeypatch.setattr(images_module, "predict_tiled", predicting)
    tuning = tune_instances(workdir)
    with pytest.raises(InputError, match="instances.json: exists already; use --overwrite"):
        tune_instances(workdir)
    splits = read_splits(read_data(tiny_config.data), 2)
    validation = splits["validation"]
    assert [i.tobytes() for i in seen] == [e.image.tobytes() for e in validation]

    chosen = json.loads((workdir / "instances.json").read_text())
    assert chosen["images"] == [e.name for e in validation]
    cell = [1 - predict_tiled(load(workdir), e.image)[..., 0] for e in validation]
    settings, quality, left_out = tune(validation, cell)
    assert {name: chosen[name] for name in as_dict(settings)} == as_dict(settings)
    assert chosen["on_validation"] == quality._asdict()
    assert (tuning.file, tuning.images) == (workdir / "instances.json", chosen["images"])
    assert (tuning.settings, tuning.quality, tuning.left_out) == (settings, quality, left_out)
    assert chosen["left_out"] == left_out._asdict()
    assert f"{quality.panoptic_quality:.4f}" in str(tuning) and capsys.readouterr().out == ""

    evaluate(workdir)
    with pytest.raises(InputError, match="report.html: exists already; use --overwrite"):
        evaluate(workdir)
    result = report(workdir / "evaluation")
    assert result["instances"] == {**as_dict(settings), "tuned": True}
    cell = [1 - predict_tiled(load(workdir), e.image)[..., 0] for e in splits["test"]]
    expected = seg_score(splits["test"], [find_cells(p, settings) for p in cell])
    assert result["scores"]["none"]["seg"] == as_json(expected._asdict())

    before = {n: v for n, v in chosen.items() if n != "neck_ratio"} | {"neck": 1.0}  # in pixels
    for other in ({}, before):
        (workdir / "instances.json").write_text(json.dumps(other))
        with pytest.raises(InputError, match="instances.json: is damaged .* run --tune again"):
            evaluate(workdir)


def test_a_cross_validation_and_its_ensemble(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    workdir = tmp_path / "run"
    assert [run.status for run in cross_validate(tiny_config, workdir, 3)] == [0, 0, 0]
    splits = read_splits(read_data(tiny_config.data), 2)
    names = [e.name for e in splits["train"] + splits["validation"]]
    left_out = []
    for fold in range(3):
        of_fold = load(workdir / f"fold{fold}").record.training.splits
        assert of_fold["test"] == [e.name for e in splits["test"]]
        assert sorted(of_fold["train"] + of_fold["validation"]) == names
        left_out += of_fold["validation"]
    assert left_out == names

    # Each network on the part that it was not trained on.
    evaluation = evaluate(workdir, split="validation")
    result = report(workdir / "evaluation_validation")
    assert [row["name"] for row in result["images"]] == names
    for fold, scores in enumerate(result["folds"]):
        model = load(workdir / f"fold{fold}")
        part = [e for e in splits["train"] + splits["validation"] if e.name in scores["images"]]
        cell = [1 - predict_tiled(model, e.image)[..., 0] for e in part]
        expected = em_scores(em_counts(part, cell))
        assert {metric: scores[metric] for metric in METRICS} == {
            metric: score.value for metric, score in expected.items()
        }
    values = [scores["pixel_error"] for scores in result["folds"]]
    assert f"pixel over 3 folds: {np.mean(values):.4g}" in str(evaluation)

    # All of them together on the test split.
    evaluate(workdir)
    result = report(workdir / "evaluation")
    assert result["folds"] is None and result["step"] == [4, 4, 4]
    members = [load(workdir / f"fold{fold}") for fold in range(3)]
    ensemble = load(workdir)
    assert [leaf.shape[0] for leaf in jax.tree.leaves(ensemble.params)][0] == 3
    cell = [
        np.mean([1 - predict_tiled(m, e.image)[..., 0] for m in members], axis=0)
        for e in splits["test"]
    ]
    expected = pixel_error([e.labels for e in splits["test"]], cell).value
    assert result["scores"]["none"]["pixel_error"]["value"] == pytest.approx(expected, abs=1e-3)
    assert predict_tiled(ensemble, np.eye(33)).shape == (33, 33, 2)

    shutil.rmtree(workdir / "fold1")
    with pytest.raises(InputError, match="holds 2 of 3 folds"):
        evaluate(workdir)


def test_bad_numbers_of_folds(tiny_config, tmp_path):
    for folds, message in [(1, "at least 2, not 1"), (6, "at most 5 for these images, not 6")]:
        with pytest.raises(InputError, match=message):
            cross_validate(tiny_config, tmp_path / "run", folds)
        assert not (tmp_path / "run").exists()


def test_bad_input_writes_nothing(workdir, own_data, tmp_path):
    images, labels = own_data
    out = tmp_path / "out"

    def refused(**settings):
        with pytest.raises(InputError) as refusal:
            evaluate(workdir, out=out, **settings)
        assert "\n" not in str(refusal.value) and not out.exists()
        return str(refusal.value)

    assert "Give --images and --labels together" in refused(images=images)
    assert "--split only without them" in refused(images=images, labels=labels, split="test")
    assert "only for runs on that data" in refused(split="test")
    assert "--mask_rule only with them" in refused(mask_rule="binary")
    assert "no step 3" in refused(step="3")
    assert "mask_rule" in refused(images=images, labels=labels, mask_rule="guess")
    assert "is not a folder" in refused(images=tmp_path / "missing", labels=labels)
    tifffile.imwrite(images / "0.tif", np.zeros((50, 60, 3), np.uint8) + np.uint8([1, 2, 3]))
    tifffile.imwrite(images / "1.tif", np.zeros((70, 40, 3), np.uint8) + np.uint8([1, 2, 3]))
    assert "channel" in refused(images=images, labels=labels)
    for averaging in ("all", []):
        with pytest.raises(ValueError, match="averaging must be one or more of none, rot"):
            evaluate(workdir, averaging=averaging)
    with pytest.raises(
        ValueError, match="split must be one of held_out, validation, test, not 'all'"
    ):
        evaluate(workdir, split="all", out=out)
    assert not out.exists()


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
    names = load(workdir).record.training.splits["test"]
    for i in range(5, 9):
        tifffile.imwrite(images / f"{i}.tif", picture)
        tifffile.imwrite(labels / f"{i}.tif", (instances > 0).astype(np.uint8) * 255)
    evaluate(workdir)
    assert [row["name"] for row in report(workdir / "evaluation")["images"]] == names

    for folder in own_data:
        next(folder.glob(f"{names[0]}.*")).unlink()
    with pytest.raises(InputError, match=f"{names[0]} of the run's test split"):
        evaluate(workdir)


def test_files_that_come_later_do_not_change_how_two_files_were_cut(
    tiny_config, own_data, tmp_path
):
    images, labels = own_data
    for i in range(2):
        picture, instances = synthetic_em(i, height=200, width=50)
        tifffile.imwrite(images / f"{i}.tif", picture)
        (labels / f"{i}.png").unlink()
        tifffile.imwrite(labels / f"{i}.tif", (instances > 0).astype(np.uint8) * 255)
    use_folder(tiny_config, images, labels, mask_rule="binary", ignore_value=-1)
    workdir = tmp_path / "run"
    fit(tiny_config, workdir)
    before = evaluate(workdir)
    assert [image.name for image in before.images] == ["0 rows 150 to 199", "1 rows 150 to 199"]
    tifffile.imwrite(images / "2.tif", picture)
    tifffile.imwrite(labels / "2.tif", (instances > 0).astype(np.uint8) * 255)
    after = evaluate(workdir, overwrite=True)
    assert after.scores["none"].values() == before.scores["none"].values()


def test_other_masks_than_those_of_the_training(workdir, own_data, tiny_config, tmp_path):
    """No number of theirs is ignored, and the report is about what they say."""
    images, labels = own_data
    use_folder(tiny_config, images, labels, mask_rule="classes", ignore_value=255)
    for mask in labels.iterdir():
        mask.unlink()
    for i, size in enumerate([(50, 60), (70, 40)]):
        cells = synthetic_em(i, height=size[0], width=size[1])[1].astype(np.uint8)
        tifffile.imwrite(labels / f"{i}.tif", np.where(cells == 1, 255, cells))
    training = load_members(workdir)[0].record.training
    config = read_configuration(tiny_config)
    model = load(workdir)
    model = replace(model, record=replace(model.record, training=replace(training, config=config)))
    given = dict(images=images, labels=labels)
    (part,) = select([model], "held_out", **given, mask_rule="instances").parts
    assert all((e.labels >= 0).all() and 255 in e.instances for e in part.examples)
    found = evaluate(workdir, **given, mask_rule="instances", out=tmp_path / "out")
    assert found.single_cells and found.layout.printed[0] == "seg"


def test_more_images_than_fit_into_memory_are_refused(workdir, own_data, monkeypatch):
    images, labels = own_data
    monkeypatch.setattr("unet_jax.evaluation.images.host_memory_bytes", lambda: 100_000)
    with pytest.raises(InputError, match=f"The images in {images} would take 0.0 GiB to be scored"):
        evaluate(workdir, images=images, labels=labels)
    with pytest.raises(InputError, match="images of the run's test split would take"):
        evaluate(workdir)


def test_pictures_that_the_network_has_seen_are_named(workdir, tiny_config, tmp_path, caplog):
    """In the split left out, where masks may differ, and among other images."""
    splits = read_splits(read_data(tiny_config.data), 2)
    images, labels = tmp_path / "images", tmp_path / "masks"
    for folder in (images, labels):
        folder.mkdir()
    for name, example in zip(("new", "old"), (splits["test"][0], splits["train"][1]), strict=True):
        tifffile.imwrite(images / f"{name}.tif", example.image)
        tifffile.imwrite(labels / f"{name}.tif", (np.roll(example.labels, 1) > 0).astype(np.uint8))
    evaluate(workdir)
    assert report(workdir / "evaluation")["duplicates"] == []
    assert "same picture" not in caplog.text

    line = (
        "1 of 2 images were seen in training or validation: old is the same picture as picture 1 "
        "(train); their scores are too good."
    )
    evaluate(workdir, images=images, labels=labels)
    assert report(workdir / "evaluation_images")["duplicates"] == [["old", "picture 1", "train"]]
    assert line in caplog.messages
    assert "old is the same picture as picture 1 (train)" in (
        workdir / "evaluation_images" / "report.html"
    ).read_text("utf-8")

    # A run of before: it knows a picture by its mask, too.
    (model,) = load_members(workdir)
    training = replace(model.record.training, images={})
    model = replace(model, record=replace(model.record, training=training))
    again = splits["train"][1]._replace(name="again")
    other = again._replace(name="other", labels=np.roll(again.labels, 1))
    for split in ("held_out", "validation"):
        found = seen_before([Part(model, [again, other, splits["validation"][0]])], split)
        expected = [("again", "picture 1", "train")]
        if split == "held_out":
            expected.append(("picture 3", "picture 3", "validation"))
        assert found == expected


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
    assert fit(tiny_config, workdir).status == 0
    evaluate(workdir)
    scores = report(workdir / "evaluation")["scores"]["none"]
    assert set(scores["intersection_over_union"]) <= {"background", "nucleus", "cell"}
    (held_out,) = load(workdir).record.training.splits["test"]
    mask = tifffile.imread(labels / f"{held_out}.tif")
    true_pixels = np.sum(scores["confusion"], axis=1)
    np.testing.assert_array_equal(true_pixels, [(mask == value).sum() for value in range(3)])
    assert report(workdir / "evaluation")["annotated"] == (mask < 200).mean()
    model = load(workdir)
    assert predict_tiled(model, rng.random((33, 34, 2))).shape == (33, 34, 3)
