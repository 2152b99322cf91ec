"""Several networks on the same images."""

import json

import numpy as np
import pytest

from tests.test_command_line import call
from tests.test_evaluate import own_data  # noqa: F401
from unet_jax import InputError, compare, evaluate
from unet_jax.evaluation.metric_table import METRICS
from unet_jax.run.fit import fit


@pytest.fixture
def runs(tiny_config, tmp_path):
    """Two that differ by their seed; the second one has left out another image as well."""
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    for seed, test in enumerate([(5, 7), (5, 8)]):
        tiny_config.train.seed, tiny_config.data.test = seed, test
        fit(tiny_config, tmp_path / f"run{seed}")
    return [tmp_path / "run0", tmp_path / "run1"]


def test_scores_side_by_side_and_image_by_image(runs):
    comparison = compare(runs, averaging="symmetries")
    out = runs[0] / "comparison"
    assert {file.name for file in out.iterdir()} == {"comparison.html", "comparison.json"}
    record = json.loads((out / "comparison.json").read_text())
    assert record["networks"] == [str(run) for run in runs]
    assert record["images"] == ["picture 5", "picture 6"] and record["left_out"] == 1
    alone = evaluate(runs[0], averaging="symmetries")
    assert record["scores"][0] == alone.scores["symmetries"].values()
    for metric, values in record["values"][0].items():
        assert values == [image.values[metric] for image in alone.images]
    differing = 0
    for metric, difference in record["differences"][0].items():
        values = [record["values"][k][metric] for k in (1, 0)]
        if None in values[0] + values[1]:
            continue
        steps = np.subtract(*values)
        assert difference["mean"] == pytest.approx(steps.mean())
        assert difference["spread"] == pytest.approx(np.std(steps, ddof=1))
        gains = steps if METRICS[metric].higher else -steps
        assert (difference["better"], difference["worse"]) == ((gains > 0).sum(), (gains < 0).sum())
        differing += steps.any()
    assert differing > 1
    page = (out / "comparison.html").read_text(encoding="utf-8")
    differ = np.not_equal(*(record["values"][k][comparison.metrics[0]] for k in (0, 1))).sum()
    assert page.count("<figure>") == 4 * differ and "1 other image that only some" in page
    assert "On 2 images, with 8 symmetries averaged" in page
    text = str(comparison)
    assert f"{alone.scores['symmetries'].values()['rand_error']:.4g}" in text
    assert text.endswith(f"Open {out / 'comparison.html'}")
    with pytest.raises(InputError, match="comparison.html: exists already; use --overwrite"):
        compare(runs)


def test_a_network_is_not_better_than_itself(runs, tmp_path):
    same = tmp_path / "same"
    runs[0].rename(same)
    runs[0].symlink_to(same)
    comparison = compare([same, runs[0]], out=tmp_path / "out")
    for difference in comparison.differences[0].values():
        assert (difference.better, difference.worse) == (0, 0)
        assert difference.mean in (0, None) and difference.spread in (0, None)
    assert "Nowhere." in comparison.report.read_text(encoding="utf-8")


def test_other_images_and_a_network_of_the_package(runs, own_data, tmp_path):  # noqa: F811
    images, labels = own_data
    places = {"images": images, "labels": labels, "out": tmp_path / "out"}
    comparison = compare([runs[0], "membranes"], **places)
    assert comparison.images == ["0", "1"] and comparison.names[1] == "membranes"


def test_what_cannot_be_compared(runs, tiny_config, tmp_path):
    with pytest.raises(InputError, match="^compare: expected two or more different runs, not "):
        compare([runs[0], runs[0]])
    with pytest.raises(InputError, match="^compare: expected two or more different runs, not "):
        compare(runs[:1])
    with pytest.raises(ValueError, match="averaging must be one or more of"):
        compare(runs, averaging="all")
    tiny_config.data.test = (7, 8)
    fit(tiny_config, tmp_path / "others")
    with pytest.raises(
        InputError, match="there is no image, with the same mask, that all runs left out"
    ):
        compare([runs[0], tmp_path / "others"])
    tiny_config.model.classes, tiny_config.class_names = 3, ("wall", "room", "door")
    fit(tiny_config, tmp_path / "classes")
    with pytest.raises(
        InputError, match="have different classes: membrane, cell; wall, room, door.$"
    ):
        compare([runs[0], tmp_path / "classes"])
    for pair in (["membranes", runs[0]], [runs[0], "membranes"]):
        with pytest.raises(
            InputError, match="^membranes: comes with.* --images, --labels and --out"
        ):
            compare(pair)
    assert not (runs[0] / "comparison").exists()


def test_the_program(runs):
    both = [f"--compare={run}" for run in runs]
    result = call("eval.py", *both)
    assert result.returncode == 0 and "comparison.html" in result.stdout
    for options, line in (
        ([*both, "--tune"], "eval.py: --tune works on a single run; use it with --checkpoint."),
        (
            [*both, "--averaging=none", "--averaging=symmetries"],
            "can be given only once for a comparison",
        ),
        ([*both, f"--checkpoint={runs[0]}"], "give --checkpoint, or --compare for each"),
        ([], "give --checkpoint, or --compare for each of several runs"),
    ):
        result = call("eval.py", *options)
        assert result.returncode in (1, 2) and line in result.stderr
