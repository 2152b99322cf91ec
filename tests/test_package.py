"""What an installed wheel holds, beside what every other test sees of the source tree."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import unet_jax
from unet_jax.configuration import configuration_file, read_configuration

ROOT = Path(__file__).parents[1]
CONFIGURATIONS = sorted(file.stem for file in (ROOT / "configs").glob("*.py"))


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    there = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "unet_jax").rglob("__init__.py")
    }
    assert set(setup["options"]["packages"].split()) == there | {"unet_jax.configs"}


def test_a_wheel_holds_programs_configurations_and_networks(tmp_path):
    """Built and unpacked; the package is then looked for there alone."""
    pytest.importorskip("setuptools", reason="building a wheel")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("unet_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + [f"--wheel-dir={tmp_path}", str(source)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        top = {name.split("/")[0] for name in files.namelist()}
        assert {name for name in top if not name.endswith(".dist-info")} == {"unet_jax"}
        files.extractall(tmp_path / "installed")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
        "import unet_jax\n"
        "print(unet_jax.__file__)\n"
        "print(unet_jax.named_config('folder').train.steps, unet_jax.load('nuclei').channels)\n"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file, values = done.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path / "installed") and values == "5400 1"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_is_had_by_its_name(name):
    assert configuration_file(name) == ROOT / "configs" / f"{name}.py"
    assert read_configuration(unet_jax.named_config(name)).train.steps > 0


def test_an_unknown_configuration_is_refused_with_those_there_are():
    with pytest.raises(unet_jax.InputError, match="no configuration 'emm' .*, em, em_small, "):
        unet_jax.named_config("emm")


@pytest.mark.parametrize(
    "program, flag, known",
    [
        ("eval", "split", "evaluation.images.SPLITS"),
        ("eval", "averaging", "overlap_tile.AVERAGING"),
        ("predict", "averaging", "overlap_tile.AVERAGING"),
        ("predict", "write", "prediction.results.KINDS"),
    ],
)
def test_a_program_offers_what_the_library_knows(program, flag, known):
    """It does not ask the library, because --help would wait for JAX."""
    module, _, name = known.rpartition(".")
    code = (
        "from absl import flags\n"
        f"import unet_jax.programs.{program}\n"
        f"from unet_jax.{module} import {name}\n"
        f"assert tuple(flags.FLAGS[{flag!r}].parser.enum_values) == {name}\n"
    )
    done = python(code, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["train", "eval", "predict", "export"])
def test_help_does_not_wait_for_jax(program):
    code = (
        "import sys; from unet_jax.__main__ import main\n"
        f"sys.argv = ['unet-jax', {program!r}, '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'jax', 'flax', 'scipy'} & set(sys.modules)\n"
    )
    done = python(code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"unet-jax {program} --" in done.stdout


def test_the_command_says_which_programs_there_are():
    code = "import sys; from unet_jax.__main__ import main; main()"
    done = python(code, cwd=ROOT)
    assert done.returncode == 0 and "unet-jax predict" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "unet_jax", "trian"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "unet-jax: there is no program 'trian'; the programs are train, eval, predict, export.\n"
    )
