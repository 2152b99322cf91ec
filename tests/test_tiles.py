import jax
import numpy as np

from tests.test_overlap_tile import he_model, picture, whole
from unet_jax import tiles
from unet_jax.network import UNet
from unet_jax.overlap_tile import predict_tiled
from unet_jax.tiles import choose_tile_side, tile_step, tiles_per_batch


def test_tile_side_is_chosen_by_size_and_memory(monkeypatch):
    network = UNet()
    assert choose_tile_side(network, 50, 60) == 252
    assert choose_tile_side(network, 512, 512) == 700
    assert choose_tile_side(network, 384, 384) == 572
    assert choose_tile_side(network, 20_000, 20_000) == 1148
    monkeypatch.setattr(tiles, "device_memory_bytes", lambda: 2**30)
    assert choose_tile_side(network, 20_000, 20_000) == 700
    monkeypatch.setattr(tiles, "device_memory_bytes", lambda: 1)
    assert choose_tile_side(network, 20_000, 20_000) == 252
    assert all(tile_step(s, 5) % 16 == 0 for s in (252, 572, 1212))
    assert tile_step(572, 5) == 384  # 388 is not a multiple of 16


def test_tiles_fill_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(tiles, "device_memory_bytes", lambda: 80 * 2**30)
    assert tiles_per_batch(UNet(), 572) == 3
    assert tiles_per_batch(UNet(), 252) == 16
    monkeypatch.setattr(tiles, "device_memory_bytes", lambda: 3 * 2**29)
    assert tiles_per_batch(UNet(), 572) == 2
    image, model = picture(70, 90), he_model(depth=2, width=2)
    assert tiles_per_batch(model.network, 36) > 1
    np.testing.assert_allclose(
        predict_tiled(model, image, tile_side=36), whole(model, image), atol=1e-5
    )
