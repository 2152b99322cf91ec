"""Who may import whom: the paper's files stand on nothing but each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# With what states a run and is as light.
PAPER = {
    *("network", "layers", "loss", "weight_map", "augmentation", "normalisation", "optimiser"),
    "grey_values",
    *(
        "train_step",
        "overlap_tile",
        "mirroring",
        "rotations",
        "tiles",
        "instances",
        "basins",
        "example",
        "model",
        "training_images",
        "resizing",
        "measurements",
        "outlines",
        "uncertainty",
    ),
    *("checked_settings", "errors", "hardware", "configuration", "sources", "run_record", "unread"),
    "training_loop",
    "compiled",
    "devices",
}
# What stands on the paper's files, from below: each may import what is above it here, and itself.
ORDER = [
    ("provenance",),
    ("metrics",),
    ("files",),
    ("data",),
    ("figures", "html_pages"),
    ("pretrained",),
    ("checkpoint",),
    ("run",),
    ("evaluation", "prediction", "export", "volumes", "live"),
    ("command_line", "unet_jax"),  # the latter is the library as its users see it
    ("programs", "viewer", "__main__"),
]
MODULES = sorted((ROOT / "unet_jax").rglob("*.py"))


def floor(module):
    """How far up a module is, from its name without the package's."""
    if module in PAPER:
        return 0
    for number, rooms in enumerate(ORDER, 1):
        if module in rooms or module.split(".")[0] in rooms:
            return number
    raise AssertionError(f"{module} has no place in this house")


def name_of(file):
    parts = file.relative_to(ROOT / "unet_jax").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in getattr(node, "names", []) if isinstance(node, ast.Import)]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            is_package = (ROOT / Path(*node.module.split("."))).is_dir()
            names = below if is_package else [node.module]
        yield from names


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nothing_imports_what_stands_above_it(file):
    here = name_of(file)
    if not here:
        return  # the package itself imports nothing before it is used
    for name in imported(file):
        top = name.split(".")[0]
        assert top not in ("train", "eval", "predict", "export", "configs", "benchmarks", "tests")
        if top == "unet_jax":
            other = name.removeprefix("unet_jax.")
            assert floor(other) <= floor(here), f"{here} imports {other}"
            rooms = here.split(".")[0], other.split(".")[0]
            if floor(here) and floor(other) == floor(here) and "." in here:
                assert rooms[0] == rooms[1], f"{here} imports {other} of a room beside"


def test_no_function_of_the_library_prints_or_reads_the_command():
    for file in MODULES:
        if file.name in ("command_line.py", "__main__.py"):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {"print", "input"} & names and "argv" not in attributes, file


def test_the_package_loads_little_before_it_is_used():
    heavy = "orbax tensorstore matplotlib tifffile imagecodecs numba pooch jinja2 scipy.ndimage"
    code = (
        "import sys, unet_jax\n"
        "unet_jax.UNet(width=2), unet_jax.sgd(steps=1000), unet_jax.make_train_step\n"
        f"print([name for name in {heavy.split()!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_every_public_name_is_there():
    import unet_jax

    for name in unet_jax.__all__:
        assert getattr(unet_jax, name).__doc__, name
