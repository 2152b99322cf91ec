import dataclasses
import gc
import io
import re
import socket
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import tifffile

from tests.test_checkpoint import a_training
from tests.test_command_line import call
from tests.test_onnx_graph import picture, random_model
from unet_jax import load, predict_tiled
from unet_jax.errors import InputError
from unet_jax.export.export import Exported, export
from unet_jax.run.fit import fit
from unet_jax.run_record import Record

spec = pytest.importorskip("bioimageio.spec", reason="bioimageio.spec is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from unet_jax.export.bioimage_package import bioimage_package  # noqa: E402
from unet_jax.export.onnx_graph import onnx_graph  # noqa: E402

# bioimageio.spec leaves its files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def closed_files():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture
def workdir(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "run")
    return tmp_path / "run"


def recorded(model, **changes):
    training = a_training(model.network, class_names=("background", "cell body"))
    record = Record(model.network, model.channels, step=3, training=training)
    return dataclasses.replace(model, record=record, **changes)


def packaged(model, image, name="a unet", authors=("A. Author",), licence="CC-BY-4.0"):
    graph = onnx_graph(model).SerializeToString()
    return bioimage_package(model, graph, image, name=name, authors=list(authors), licence=licence)


def unpack(package, folder):
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    with spec.ValidationContext(perform_io_checks=True):
        return spec.load_model_description(folder / "rdf.yaml", format_version="latest")


def predict_as_documented(folder, image, monkeypatch):
    """By the Python code of the package's README."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert set(re.findall(r"^import (\w+)", code, re.MULTILINE)) == {"numpy", "onnxruntime"}
    monkeypatch.chdir(folder)
    names = {}
    exec(code, names)
    return names["predict"](image)


def run_as_described(description, folder):
    """By the steps that the package's metadata name, on its own test image."""
    image = np.load(folder / "test_input.npy").astype(np.float64)
    mean = image.mean((2, 3), keepdims=True)
    std = image.std((2, 3), keepdims=True)
    steps = {step.id: step.kwargs for step in description.inputs[0].preprocessing}
    assert list(steps) == ["ensure_dtype", "zero_mean_unit_variance", "scale_linear"]
    gain, offset = (
        np.reshape(steps["scale_linear"].model_dump()[key], (1, -1, 1, 1))
        for key in ("gain", "offset")
    )
    normalised = (image - mean) / (std + steps["zero_mean_unit_variance"].eps) * gain + offset
    session = onnxruntime.InferenceSession(folder / "weights.onnx")
    return session.run(None, {"image": normalised.astype(np.float32)})[0]


def test_a_run_becomes_a_valid_package(workdir, tmp_path, no_network, monkeypatch, capsys):
    out = tmp_path / "exported"
    exported = export(workdir, output=out)
    files = out / "unet_run.onnx", out / "unet_run.zip"
    assert exported == Exported({file: file.stat().st_size for file in files}, scale=1.0)
    assert capsys.readouterr().out == ""
    assert {p.name for p in out.iterdir()} == {"unet_run.onnx", "unet_run.zip"}
    with spec.ValidationContext(perform_io_checks=True):
        assert spec.load_description(out / "unet_run.zip").validation_summary.status == (
            "valid-format"
        )
    package = unpack(out / "unet_run.zip", tmp_path / "package")
    folder = tmp_path / "package"
    assert (folder / "weights.onnx").read_bytes() == (out / "unet_run.onnx").read_bytes()

    # Depth 2: the context is 8 pixels, the max-pooling grid 2.
    y = package.inputs[0].axes[2]
    assert (y.id, y.size.min, y.size.step, y.unit) == ("y", 18, 2, None)
    assert package.inputs[0].pad.mode == "reflect"
    assert [axis.halo for axis in package.outputs[0].axes[2:]] == [8, 8]
    assert package.outputs[0].axes[1].channel_names == ["membrane", "cell"]
    assert package.cite[0].doi == "10.1007/978-3-319-24574-4_28"
    assert package.weights.onnx.opset_version == 13
    assert package.config.unet_jax["step"] == 4
    assert tifffile.imread(folder / "sample_input.tif").shape == (1, 60, 60)
    assert (folder / "cover.png").stat().st_size < 500_000

    example, result = (np.load(folder / f"test_{end}.npy") for end in ("input", "output"))
    assert example.dtype == result.dtype == np.float32
    model = load(workdir)
    expected = predict_tiled(model, example[0, 0]).transpose(2, 0, 1)
    np.testing.assert_array_equal(result[0], expected)
    np.testing.assert_allclose(run_as_described(package, folder), result, atol=1e-4)
    # Sizes off the grid, odd, and smaller than the context.
    for size in [(60, 60), (37, 50), (5, 3)]:
        image = picture(*size)[..., 0]
        documented = predict_as_documented(folder, image, monkeypatch)
        expected = predict_tiled(model, image).transpose(2, 0, 1)
        np.testing.assert_allclose(documented, expected, atol=1e-4)


def test_channels_scale_and_a_small_example(tmp_path, no_network, monkeypatch):
    model = recorded(random_model(depth=2, channels=3, members=2), scale=0.5)
    # At half the size smaller than the smallest tile: mirrored.
    image = picture(20, 90, 3) * [1, 10, 1e-8]
    package = unpack(io.BytesIO(packaged(model, image)), tmp_path)
    example, result = (np.load(tmp_path / f"test_{end}.npy") for end in ("input", "output"))
    assert example.shape == (1, 3, 18, 44) and result.shape == (1, 2, 18, 44)
    np.testing.assert_allclose(run_as_described(package, tmp_path), result, atol=1e-4)
    documented = predict_as_documented(tmp_path, example[0], monkeypatch)
    np.testing.assert_allclose(documented, result[0], atol=1e-4)
    assert package.outputs[0].axes[1].channel_names == ["background", "cell body"]
    assert package.description.endswith("Shrink images to 0.5 times their size first.")
    assert package.authors[0].name == "A. Author" and str(package.license) == "CC-BY-4.0"
    assert "resized to 0.5 times their height" in (tmp_path / "README.md").read_text()


def test_the_example_is_of_the_precision_of_the_graph(tmp_path, no_network, monkeypatch):
    """Whatever the network was trained in."""
    model = recorded(random_model(depth=2))
    model = dataclasses.replace(model, network=model.network.clone(dtype="bfloat16"))
    package = unpack(io.BytesIO(packaged(model, picture(40, 40)[..., 0])), tmp_path)
    result = np.load(tmp_path / "test_output.npy")
    np.testing.assert_allclose(run_as_described(package, tmp_path), result, atol=1e-4)


def test_a_few_cells_on_an_even_background_as_documented(tmp_path, no_network, monkeypatch):
    model = recorded(random_model(depth=2))
    image = np.zeros((40, 40), np.float32)
    image[3:6, 4] = 150
    unpack(io.BytesIO(packaged(model, image)), tmp_path)
    documented = predict_as_documented(tmp_path, image, monkeypatch)
    expected = predict_tiled(model, image).transpose(2, 0, 1)
    np.testing.assert_allclose(documented, expected, atol=1e-4)


def test_an_example_without_outliers_needs_no_gain(tmp_path):
    """More than 1 % of the pixels are black, as many white: all count."""
    model = recorded(random_model(depth=2))
    image = np.random.default_rng(0).integers(0, 2, (40, 40)) * 255
    package = unpack(io.BytesIO(packaged(model, image)), tmp_path)
    assert "scale_linear" not in {step.id for step in package.inputs[0].preprocessing}


def test_what_the_zoo_would_refuse_is_said_at_once():
    model = recorded(random_model(depth=2))
    with pytest.raises(InputError) as refusal:
        packaged(model, picture(40, 40)[..., 0], "a/b", ["", "B"], "free")
    assert len(refusal.value.args) == 3 and "\n" not in str(refusal.value)
    for part in ("--name: expected 5 to 128 letters", "--author", "such as CC-BY-4.0, not 'free'"):
        assert part in str(refusal.value)


def test_bad_input_writes_nothing(workdir, tmp_path):
    out = tmp_path / "exported"

    def refused(**settings):
        with pytest.raises(InputError) as refusal:
            export(workdir, output=out, **settings)
        assert not out.exists()
        return str(refusal.value)

    def example(image):
        tifffile.imwrite(tmp_path / "example.tif", image)
        return tmp_path / "example.tif"

    assert "no step 3" in refused(step="3")
    assert "missing" in refused(image=tmp_path / "missing")
    assert "no contrast" in refused(image=example(np.zeros((30, 30), np.uint8)))
    hot = picture(30, 30)[..., 0]
    hot[15, 15] = 1e20
    assert "holds a pixel of 1e+20" in refused(image=example(hot))
    assert "--name" in refused(name="../../escaped")

    export(workdir, output=out)
    before = (out / "unet_run.onnx").read_bytes()
    with pytest.raises(InputError, match="unet_run.onnx: exists already; use --overwrite"):
        export(workdir, output=out)
    (out / "unet_run.onnx").write_bytes(b"old")
    export(workdir, output=out, overwrite=True)
    assert (out / "unet_run.onnx").read_bytes() == before


def test_a_missing_package_is_one_line(workdir, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "unet_jax.export.bioimage_package", raising=False)
    monkeypatch.setitem(sys.modules, "bioimageio.spec", None)
    with pytest.raises(
        InputError, match=r"bioimageio.spec is not .* pip install 'unet-jax\[export\]'"
    ):
        export(workdir, output=tmp_path / "exported")


def test_unet_jax_itself_needs_no_onnx():
    code = (
        "import sys, unet_jax.export.export; assert not {'onnx', 'bioimageio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_program(workdir, tmp_path):
    out = tmp_path / "exported"
    done = call("export.py", f"--checkpoint={workdir}", f"--output={out}", "--name=My U-Net (EM)")
    assert done.returncode == 0, done.stderr
    files = [out / "My U-Net (EM).onnx", out / "My U-Net (EM).zip"]
    assert {*out.iterdir()} == {*files}
    assert done.stdout.splitlines() == [f"{f}: {f.stat().st_size:,} bytes" for f in files]
    done = call("export.py", f"--checkpoint={workdir}", f"--output={tmp_path / 'x'}", "--licence=x")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "--licence" in done.stderr and not (tmp_path / "x").exists()
    done = call("export.py", "--help")
    assert done.returncode == 0 and "pip install 'unet-jax[export]'" in done.stdout
