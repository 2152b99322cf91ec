import json
import shutil

import jax
import numpy as np
import pytest
import tifffile

from benchmarks.nuclei import made_up_nuclei
from configs import folder
from unet_jax import InputError, evaluate, find_cells, fit, load, predict_tiled, tune_instances
from unet_jax.checkpoint.cell_settings import cell_settings, is_tuned
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.metrics import pixel_error, seg
from unet_jax.prediction.predict_files import predict_files
from unet_jax.pretrained import NETWORKS, run_folder


@pytest.mark.parametrize("name", NETWORKS)
def test_what_comes_with_the_package(name):
    network = run_folder(name)
    files = [file for file in network.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5e6
    card = (network / "README.md").read_text(encoding="utf-8")
    for heading in ("## Data and terms", "## How good it is", "## Where it fails", "## Cite"):
        assert heading in card
    model = load(name)
    for leaf in jax.tree.leaves(model.params):
        np.testing.assert_array_equal(leaf, np.float16(leaf))
    config = folder.get_config()  # which may start from it
    assert (model.network.width, model.network.depth) == (config.model.width, config.model.depth)
    (record,) = network.glob("checkpoints/*/checkpoint.json")
    assert '"/' not in record.read_text() and "\\\\" not in record.read_text()
    saved = [file for file in files if "checkpoints" in file.parts]
    assert not any(b"pretrained" in file.read_bytes() for file in saved)  # nor does Orbax tell


def test_nuclei_finds_nuclei_and_membranes_finds_membranes():
    usual = made_up_nuclei("usual", 99)
    settings = cell_settings("nuclei")
    assert is_tuned("nuclei")
    cells = find_cells(predict_tiled(load("nuclei"), usual.image)[..., 1], settings)
    assert seg([usual.instances], [cells]).value > 0.7
    assert cells.max() == pytest.approx(len(np.unique(usual.instances)) - 1, rel=0.1)
    picture, instances = synthetic_em(12345, height=256, width=256)
    probability = predict_tiled(load("membranes"), picture)[..., 1]
    assert pixel_error([np.int32(instances > 0)], [probability]).value < 0.05


def test_a_run_of_that_name_comes_first_but_not_a_folder_of_images(tmp_path, monkeypatch):
    shipped = run_folder("nuclei")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nuclei").mkdir()
    assert run_folder("nuclei") == shipped
    assert run_folder("nuclei/") == run_folder(tmp_path.joinpath("nuclei").relative_to(tmp_path))
    for name in ("checkpoints", "fold0"):
        (tmp_path / "nuclei" / name).mkdir()
        assert run_folder("nuclei").resolve() == tmp_path / "nuclei"
        (tmp_path / "nuclei" / name).rmdir()
    assert run_folder("runs/nuclei") == run_folder("runs") / "nuclei"
    with pytest.raises(InputError, match="membranes, nuclei"):
        load("nuclie")


def test_files_are_predicted_and_scored_by_name(tmp_path):
    example = made_up_nuclei("usual", 99)
    for kind, array in (("images", example.image), ("masks", np.uint16(example.instances))):
        (tmp_path / kind).mkdir()
        tifffile.imwrite(tmp_path / kind / "a.tif", array[:200, :220])
    done = predict_files("nuclei", images=tmp_path / "images", output=tmp_path / "out")
    assert done.done == 1 and (tmp_path / "out" / "a_cells.tif").exists()
    own = {"images": tmp_path / "images", "labels": tmp_path / "masks", "mask_rule": "instances"}
    evaluation = evaluate("nuclei", **own, out=tmp_path / "evaluation")
    assert evaluation.report == tmp_path / "evaluation" / "report.html"
    assert evaluation.tuned
    for arguments in (own, {}, {"out": tmp_path / "other"}):
        with pytest.raises(InputError, match="comes with the package"):
            evaluate("nuclei", **arguments)
    with pytest.raises(InputError, match="tune a run of your own"):
        tune_instances("nuclei")


def test_a_training_begins_with_it(tmp_path):
    config = folder.get_config()
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for seed in range(3):
        example = made_up_nuclei("usual", seed)
        tifffile.imwrite(tmp_path / "images" / f"{seed}.tif", example.image[:150, :150])
        tifffile.imwrite(
            tmp_path / "masks" / f"{seed}.tif", np.uint16(example.instances)[:150, :150]
        )
    config.data.images, config.data.labels = str(tmp_path / "images"), str(tmp_path / "masks")
    config.data.mask_rule = "instances"
    config.train.start_from = "nuclei"
    config.train.tile_side, config.train.steps, config.optimiser.warmup_steps = 140, 2, 1
    fit(config, tmp_path / "run")
    (record,) = (tmp_path / "run").glob("checkpoints/*/checkpoint.json")
    started = json.loads(record.read_text())["started_from"]
    assert started["checkpoint"] == "nuclei" and started["new_layers"] == []
    before, after = load("nuclei").params, load(tmp_path / "run").params
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
    assert 0 < max(jax.tree.leaves(change)) < 0.01


def test_a_damaged_file_is_found(tmp_path):
    shutil.copytree(run_folder("nuclei"), tmp_path / "copy")
    (record,) = (tmp_path / "copy").glob("checkpoints/*/checkpoint.json")
    record.write_text(record.read_text().replace('"channels": 1', '"channels": 2'))
    with pytest.raises(InputError, match="damaged"):
        load(tmp_path / "copy")
