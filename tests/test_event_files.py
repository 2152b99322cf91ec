"""The log of a run as TensorBoard reads it."""

import struct
import sys

import pytest

from unet_jax import InputError
from unet_jax.run.fit import fit
from unet_jax.run.log import read_log


def events(folder):
    """What the only event file holds: {(name, step): value}, and the steps of the pictures."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (file,) = folder.iterdir()
    content, scalars, pictures = file.read_bytes(), {}, []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            if value.HasField("image"):
                pictures.append(event.step)
                assert min(value.image.height, value.image.width) > 100
            else:
                scalars[value.tag, event.step] = value.simple_value
    return scalars, pictures


def expected(workdir):
    scalars = {}
    for row in read_log(workdir / "log.jsonl"):
        kind, values = "training", row
        if "validation" in row:
            kind, values = "validation", row["validation"]
        for name, value in values.items():
            if name not in ("step", "seconds"):
                scalars[f"{kind}/{name}", row["step"]] = value
    return scalars


def test_all_of_the_log_and_the_pictures(tiny_config, tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    tiny_config.train.steps, tiny_config.train.validate_every = 4, 4
    fit(tiny_config, tmp_path, tensorboard=True)
    scalars, pictures = events(tmp_path / "tensorboard")
    assert scalars == pytest.approx(expected(tmp_path), rel=1e-6) and pictures == [4]
    assert {"training/loss", "validation/pixel_error"} <= {name for name, _ in scalars}
    # It goes on, and the file holds the whole log again.
    tiny_config.train.steps = 8
    fit(tiny_config, tmp_path, tensorboard=True, allow_change=["config.train.steps"])
    scalars, pictures = events(tmp_path / "tensorboard")
    assert scalars == pytest.approx(expected(tmp_path), rel=1e-6) and pictures == [8]
    assert ("training/loss", 1) in scalars and ("training/loss", 8) in scalars


def test_a_folder_that_cannot_be_is_refused_before_anything_is_written(tiny_config, tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    (tmp_path / "tensorboard").touch()
    with pytest.raises(InputError, match="tensorboard: cannot be written to"):
        fit(tiny_config, tmp_path, tensorboard=True)
    assert not (tmp_path / "log.jsonl").exists()


def test_without_it_nothing_is_written(tiny_config, tmp_path, monkeypatch):
    tiny_config.train.steps, tiny_config.train.validate_every = 4, 4
    fit(tiny_config, tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    tiny_config.train.steps = 8
    with pytest.raises(InputError, match=r"pip install 'unet-jax\[tensorboard\]'"):
        fit(tiny_config, tmp_path, tensorboard=True, allow_change=["config.train.steps"])
