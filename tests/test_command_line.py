"""The programs as a user starts them: exit status, one line on standard error, nothing written."""

import logging
import subprocess
import sys

import pytest

from tests.reliability.conftest import ROOT, TINY
from unet_jax import command_line

TINY = [*TINY, "--config.train.steps=4", "--config.train.validate_every=2"]


def call(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_train_then_evaluate(tmp_path):
    workdir = tmp_path / "run"
    trained = call("train.py", *TINY, f"--workdir={workdir}")
    assert trained.returncode == 0, trained.stderr
    evaluated = call("eval.py", f"--checkpoint={workdir}", "--averaging=symmetries")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "8 symmetries averaged" in evaluated.stdout and "blurred grey" in evaluated.stdout
    assert {p.name for p in (workdir / "evaluation").iterdir()} == {
        "report.html",
        "report.json",
        "report.csv",
        "examples.png",
    }
    tuned = call("eval.py", f"--checkpoint={workdir}", "--tune")
    assert tuned.returncode == 0, tuned.stderr
    assert "threshold" in tuned.stdout and (workdir / "instances.json").exists()


def test_an_error_in_a_config_file_is_told_by_its_reason(tmp_path):
    config = tmp_path / ("long" * 40) / "config.py"
    config.parent.mkdir()
    config.write_text("def get_config():\n    return undefined_name\n")
    done = call("train.py", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr == "train.py: --config: name 'undefined_name' is not defined\n"


def test_a_long_path_is_told_whole(tmp_path):
    folder = tmp_path / ("long" * 50) / ("path" * 50)
    done = call("eval.py", f"--checkpoint={folder}")
    assert done.returncode == 2 and done.stderr.endswith(": membranes, nuclei.\n")
    assert str(folder) in done.stderr


def test_messages_do_not_steer_the_terminal(tmp_path, capsys):
    """Names of files and pictures can come from a stranger."""
    done = call("eval.py", f"--checkpoint={tmp_path}/\x1b[2J")
    assert done.returncode == 2 and f"{tmp_path}/?[2J: no checkpoint" in done.stderr
    notice = logging.LogRecord("unet_jax", logging.WARNING, "", 0, "%s: is one", ("\x1b[2J",), None)
    command_line._Console().emit(notice)
    assert capsys.readouterr().err == "?[2J: is one\n"


def test_folds_by_one_flag(tmp_path):
    trained = call("train.py", *TINY, f"--workdir={tmp_path}", "--folds=2")
    assert trained.returncode == 0, trained.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fold0", "fold1"]
    evaluated = call("eval.py", f"--checkpoint={tmp_path}", "--split=validation")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "pixel over 2 folds:" in evaluated.stdout


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_help(program):
    done = call(program, "--help")
    assert done.returncode == 0
    assert f"unet-jax {program.removesuffix('.py')} --" in done.stdout
    assert ("--workdir" if program == "train.py" else "--averaging") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "--workdir=WORK"], "--config"),
        (["train.py", "--config=configs/demo.py"], "--workdir"),
        (["train.py", "--config=configs/missing.py", "--workdir=WORK"], "missing.py"),
        (["train.py", *TINY, "--workdir=WORK", "--config.model.witdh=3"], "width"),
        (
            ["train.py", "--config=configs/folder.py", "--workdir=WORK", "--config.data.train=3"],
            "--config has no value 'train', see docs/configuration.md",
        ),
        (["train.py", *TINY, "--workdir=WORK", "--config.model.width=wide"], "wide"),
        (["train.py", *TINY, "--workdir=WORK", "--config.train.batch_size=-3"], "train.batch_size"),
        (["train.py", *TINY, "--workdir=WORK", "stray"], "stray"),
        (["train.py", *TINY, "--workdir="], "it must name a folder"),
        (["eval.py", "--checkpoint=WORK", "--out="], "it must name a file or folder"),
        (
            [
                "train.py",
                "--config=configs/folder.py",
                "--workdir=WORK",
                "--config.data.source=Folder",
            ],
            "Folder",
        ),
        (["eval.py"], "--checkpoint"),
        (["eval.py", "--checkpoint=WORK"], "no checkpoint"),
        (["eval.py", "--checkpoint=WORK", "--averaging=mean"], "mean"),
        (["eval.py", "--checkpoint=WORK", "--tune", "--images=here"], "leave out --images"),
        (["eval.py", "--checkpoint=WORK", "--tune", "--split=test"], "leave out --split"),
        (
            ["eval.py", "--checkpoint=WORK", "--tune", "--averaging=none", "--averaging=none"],
            "only once with --tune",
        ),
        (["train.py", "--config", "demo", "--workdir", "WORK", "--config.train.steps=-3"], "steps"),
        (["eval.py", "--checkpoint=WORK", "--chekpoint=x"], "chekpoint"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, arguments, message):
    workdir = tmp_path / "run"
    done = call(*[a.replace("WORK", str(workdir)) for a in arguments])
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not workdir.exists()
