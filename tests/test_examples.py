import importlib.util
from pathlib import Path

import numpy as np
import tifffile

from unet_jax import predict_tiled
from unet_jax.data.folder import connected_cells
from unet_jax.data.synthetic_em import synthetic_em

FILE = Path(__file__).parents[1] / "examples" / "own_loop.py"


def own_loop():
    spec = importlib.util.spec_from_file_location("own_loop", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_loop_of_ones_own_learns(capsys):
    assert len(FILE.read_text().splitlines()) <= 60
    pictures = [synthetic_em(i, height=120, width=120) for i in range(3)]
    images, cells = (np.stack(arrays) for arrays in zip(*pictures, strict=True))
    model = own_loop().train(images, cells, steps=200, width=4, tile_side=108)
    assert capsys.readouterr().out.startswith("step 100: loss ")
    cell = predict_tiled(model, images[0])[..., 1]
    assert cell[cells[0] > 0].mean() > cell[cells[0] == 0].mean() + 0.2


def test_a_loop_of_ones_own_on_the_em_stack(real_data):
    images, labels = (
        tifffile.imread(real_data / "isbi2012" / f"train-{kind}.tif", key=range(2))
        for kind in ("volume", "labels")
    )
    cells = np.stack([connected_cells(label > 0) for label in labels])
    model = own_loop().train(images, cells, steps=101, width=2)
    assert np.isfinite(predict_tiled(model, images[0])).all()
