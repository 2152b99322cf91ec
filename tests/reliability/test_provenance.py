"""A run records what it depended on, and its report says so."""

import json
import re
import subprocess
import sys

from tests.reliability.conftest import TINY
from unet_jax import load
from unet_jax.data.splits import read_splits
from unet_jax.example import sha256
from unet_jax.provenance import versions
from unet_jax.sources import Synthetic


def test_a_run_records_what_it_depended_on_and_the_report_states_it(run, tmp_path):
    workdir = tmp_path / "run"
    options = [*TINY, "--config.train.steps=4", "--config.train.validate_every=4"]
    assert run("train.py", *options, f"--workdir={workdir}")[0] == 0
    training = load(workdir).record.training
    assert training.command.startswith("python train.py --config=configs/demo.py")
    assert str(workdir) in training.command
    assert training.config.train.steps == 4 and training.config.model.width == 2
    assert training.versions == versions()
    assert re.fullmatch(r"[0-9a-f]{40}(, changed since)?|unknown", training.versions["commit"])
    assert {"jax", "numpy", "orbax-checkpoint", "python", "unet-jax"} <= set(training.versions)

    data = Synthetic(height=60, width=60, train=(0, 2), validation=(2, 3), test=(3, 5))
    examples = [e for part in read_splits(data, 2).values() for e in part]
    assert training.data == {e.name: sha256(e) for e in examples}

    assert run("eval.py", f"--checkpoint={workdir}")[0] == 0
    result = json.loads((workdir / "evaluation" / "report.json").read_text())
    page = (workdir / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert result["training"]["versions"] == training.versions
    assert "eval.py --checkpoint=" in result["command"]
    for stated in (
        training.versions["commit"],
        training.versions["device"],
        result["training"]["data_sha256"],
        "python train.py --config=configs/demo.py",
    ):
        assert stated in page


def test_a_copy_without_history_says_that_its_commit_is_unknown(tmp_path):
    code = "from unet_jax.provenance import versions; print(versions()['commit'])"
    package = tmp_path / "unet_jax"
    subprocess.run(["cp", "-r", "unet_jax", str(package)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "unknown"


def test_other_pixels_in_the_test_split_are_noticed(tiny_config, tmp_path, monkeypatch, caplog):
    from unet_jax.evaluation import images
    from unet_jax.evaluation.evaluate import evaluate
    from unet_jax.run.fit import fit

    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "run")
    original = images.read_splits

    def changed(*args):
        splits = original(*args)
        first = splits["test"][0]
        return splits | {"test": [first._replace(image=first.image + 1), *splits["test"][1:]]}

    monkeypatch.setattr(images, "read_splits", changed)
    evaluate(tmp_path / "run")
    assert "picture 5: its image or mask has changed since the training" in caplog.text
    assert "picture 6" not in caplog.text
