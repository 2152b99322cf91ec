"""Outputs have their names only when they are complete, and one run at a time has a folder."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.conftest import ROOT, TINY
from unet_jax.errors import InputError
from unet_jax.evaluation.evaluate import evaluate
from unet_jax.files.output import complete, lock
from unet_jax.run.fit import fit
from unet_jax.run.log import read_log

# In the order in which they are written.
OUTPUTS = ["examples.png", "report.json", "report.csv", "report.html"]


class Killed(BaseException):
    """Nothing that follows is executed."""


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "file.txt"
    with complete(file) as unfinished:
        unfinished.write_text("whole")
    with pytest.raises(Killed), complete(file) as unfinished:
        unfinished.write_text("ha")
        raise Killed
    assert file.read_text() == "whole" and list(tmp_path.iterdir()) == [file]


def test_two_writers_of_one_file_do_not_share_what_is_unfinished(tmp_path):
    code = f"""
from pathlib import Path
from unet_jax.files.output import complete, lock
with complete(Path({str(tmp_path / "file")!r})) as unfinished:
    unfinished.write_text("other")
"""
    with complete(tmp_path / "file") as unfinished:
        unfinished.write_text("own")
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        assert (tmp_path / "file").read_text() == "other"
    assert (tmp_path / "file").read_text() == "own"


@pytest.mark.parametrize("written", range(4))
def test_an_evaluation_that_ends_before_a_file_is_complete_does_not_show_it(
    tiny_config, tmp_path, monkeypatch, written
):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "run")
    replaced = []
    original = Path.replace

    def replace(unfinished, file):
        if len(replaced) == written:
            raise Killed
        replaced.append(Path(file).name)
        return original(unfinished, file)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        evaluate(tmp_path / "run")
    out = tmp_path / "run" / "evaluation"
    assert sorted(p.name for p in out.iterdir()) == sorted(OUTPUTS[:written]) == sorted(replaced)


@pytest.mark.parametrize("name", OUTPUTS)
def test_no_output_is_replaced_unasked(tiny_config, tmp_path, name):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("my own")
    with pytest.raises(InputError, match=f"{name}: exists already; use --overwrite to replace it"):
        evaluate(tmp_path / "run", out=out)
    assert (out / name).read_text() == "my own" and len(list(out.iterdir())) == 1


def test_a_second_run_in_the_same_folder_is_refused(tiny_config, tmp_path, run):
    fit(tiny_config, tmp_path / "run")
    lock(tmp_path / "run")  # as while it trains
    status, _, errors = run("train.py", *TINY, f"--workdir={tmp_path / 'run'}")
    assert status == 2 and "holds a run with" in errors
    before = read_log(tmp_path / "run" / "log.jsonl")
    options = [option for option in TINY if not option.startswith("--config.data.t")]
    options.remove("--config.data.validation=(2, 3)")
    options += ["--config.data.train=(0, 3)", "--config.data.validation=(3, 5)"]
    options += ["--config.data.test=(5, 7)", "--config.optimiser.warmup_steps=3"]
    options += ["--config.train.steps=20", "--config.train.validate_every=4"]
    status, _, errors = run("train.py", *options, f"--workdir={tmp_path / 'run'}")
    assert (status, len(errors.splitlines())) == (2, 1) and "another run is writing to it" in errors
    assert read_log(tmp_path / "run" / "log.jsonl") == before


def test_printed_commands_are_what_a_shell_takes(tiny_config, tmp_path, run):
    """Of `fit` at its end and where it has ended before, and of a cross-validation."""
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    workdir = tmp_path / "my runs (2) \u00e4 & 'co'"
    runs = [fit(tiny_config, workdir), fit(tiny_config, workdir)]
    options = [*TINY, "--config.train.steps=4", "--config.train.validate_every=4", "--folds=2"]
    status, output, errors = run("train.py", *options, f"--workdir={workdir / 'five'}")
    assert status == 0, errors
    lines = [*map(str, runs), *(line for line in output.splitlines() if "unet-jax " in line)]
    folders = [workdir, workdir, *(workdir / "five" / f"fold{fold}" for fold in (0, 1))]
    expected = [["unet-jax", "eval", f"--checkpoint={folder}"] for folder in folders]
    expected.append([*expected[0][:2], f"--checkpoint={workdir / 'five'}", "--split=validation"])
    assert [shlex.split(line[line.rindex("unet-jax ") :]) for line in lines] == expected


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_is_gone_does_not_change_the_exit_status(tmp_path, start, unbuffered):
    process = start(
        "train.py",
        *TINY,
        "--config.train.steps=4",
        f"--workdir={tmp_path / 'run'}",
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    process.stdout.close()
    process.stdout = None
    errors = process.stderr.read()
    assert process.wait() == 0, errors
    assert "Traceback" not in errors and "Broken pipe" not in errors


def test_damaged_lines_of_a_log_are_left_out_with_a_warning(tmp_path, caplog):
    file = tmp_path / "log.jsonl"
    good = b'{"step": 1}\n', b'{"step": 2}\n'
    file.write_bytes(good[0] + b"\xff\xfe\n" + b'{"loss": 1}\n' + good[1] + b'{"step": 3, "lo')
    assert [row["step"] for row in read_log(file)] == [1, 2]
    assert "line 2 is damaged" in caplog.text and "line 3 is damaged" in caplog.text
    assert "line 5" not in caplog.text, "cut off by a kill"
