import hashlib
import io
import zipfile

import numpy as np
import pooch
import pytest
import tifffile

from unet_jax.data import cell_tracking
from unet_jax.data.cell_tracking import find_dataset, read_sequence
from unet_jax.data.splits import read_splits
from unet_jax.errors import InputError
from unet_jax.example import IGNORED
from unet_jax.sources import CellTracking

# pooch leaves the connection of a failed download to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def made_up_cells():
    """Two cells that touch and one alone, far from the right end."""
    cells = np.zeros((30, 90), np.uint16)
    cells[5:15, 5:15] = 7
    cells[5:15, 15:25] = 300
    cells[20:28, 10:20] = 2
    return cells


def write_frame(folder, sequence, number, cells, truth="GT"):
    for name in (sequence, f"{sequence}_{truth}/SEG"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(int(number)).integers(0, 255, cells.shape, np.uint8)
    tifffile.imwrite(folder / sequence / f"t{number}.tif", image, compression="lzw")
    tifffile.imwrite(
        folder / f"{sequence}_{truth}" / "SEG" / f"man_seg{number}.tif", cells, compression="lzw"
    )
    return image


@pytest.fixture
def dataset(tmp_path):
    """As PhC-C2DH-U373 is laid out, with five annotated frames in each sequence."""
    folder = tmp_path / "PhC-C2DH-U373"
    for sequence in ("01", "02"):
        for frame in (2, 10, 33, 50, 114):
            write_frame(folder, sequence, f"{frame:03d}", made_up_cells())
            write_frame(folder, sequence, f"{frame:03d}", made_up_cells(), truth="ST")
        write_frame(folder, sequence, "060", made_up_cells(), truth="ST")
        write_frame(folder, sequence, "070", made_up_cells() * 0)
        (folder / f"{sequence}_GT" / "SEG" / "readme.txt").touch()
    return folder


def read(dataset, sequence="01", truth="gold", partly_annotated=()):
    return read_sequence(dataset, sequence, truth=truth, partly_annotated=partly_annotated)


def test_frames_with_cells_in_the_order_of_time(dataset):
    examples = read(dataset, "02")
    assert [e.name for e in examples] == ["02/002", "02/010", "02/033", "02/050", "02/114"]
    for example in examples:
        image = tifffile.imread(dataset / "02" / f"t{example.name[3:]}.tif")
        np.testing.assert_array_equal(example.image, image, strict=True)
        np.testing.assert_array_equal(example.instances, made_up_cells().astype(np.int32))
        np.testing.assert_array_equal(example.labels, example.instances > 0)
        assert example.labels.dtype == example.instances.dtype == np.int32
    assert [e.name for e in read(dataset, truth="silver")][-2:] == ["01/060", "01/114"]


@pytest.mark.parametrize("partly_annotated", [("01/010",), ("all",)])
def test_background_far_from_the_cells_of_a_partly_annotated_frame_is_ignored(
    dataset, partly_annotated
):
    first, second, *_ = read(dataset, partly_annotated=partly_annotated)
    assert (first.labels == IGNORED).any() == (partly_annotated == ("all",))
    cells = made_up_cells() > 0
    rows, columns = np.indices(cells.shape)
    distance = np.min([np.hypot(rows - y, columns - x) for y, x in np.argwhere(cells)], axis=0)
    np.testing.assert_array_equal(second.labels == IGNORED, distance > 20)
    np.testing.assert_array_equal(second.labels == 1, cells)


def settings(dataset, validation_every=2, **changes):
    return CellTracking(dataset=str(dataset), validation_every=validation_every, **changes)


def names(splits):
    return {split: [e.name for e in examples] for split, examples in splits.items()}


def test_one_sequence_against_the_other(dataset):
    gold = names(read_splits(settings(dataset), 2))
    assert gold["train"] == ["01/002", "01/033", "01/114"]
    assert gold["validation"] == ["01/010", "01/050"]
    assert gold["test"] == ["02/002", "02/010", "02/033", "02/050", "02/114"]
    silver = names(read_splits(settings(dataset, truth="silver"), 2))
    assert silver["train"] == ["01/002", "01/033", "01/060", "01/114"]
    assert (silver["validation"], silver["test"]) == (gold["validation"], gold["test"])


def refused(call):
    with pytest.raises(InputError) as refusal:
        call()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_bad_settings(dataset, tmp_path):
    assert "gold or silver, not 'bronze'" in refused(lambda: read(dataset, truth="bronze"))
    for name in ("01/011", "010"):
        message = refused(lambda n=name: read(dataset, partly_annotated=(n,)))
        assert (
            f"partly_annotated holds '{name}', but" in message
            and "01_GT/SEG has no such" in message
        )
    for every in (1, 6):
        message = refused(lambda n=every: read_splits(settings(dataset, validation_every=n), 2))
        assert f"between 2 and the 5 annotated frames of sequence 01, not {every}" in message
    assert "one of the known sets, DIC-" in refused(lambda: find_dataset("DIC-C2DH-Hela"))
    assert "03_GT/SEG: is not a folder" in refused(lambda: read(dataset, "03")) or "03: is not" in (
        refused(lambda: read(dataset, "03"))
    )


def test_bad_folders_and_files(dataset):
    truth = dataset / "01_GT" / "SEG"

    for number in ("002", "010", "033", "050"):
        (truth / f"man_seg{number}.tif").unlink()
    (truth / "man_seg114.tif").rename(truth / "man_seg115.tif")
    assert "man_seg115.tif: has no image t115.tif in" in refused(lambda: read(dataset))
    (truth / "man_seg115.tif").unlink()
    assert "SEG: holds no frame with an annotated cell" in refused(lambda: read(dataset))
    (truth / "man_seg070.tif").unlink()
    assert "SEG: holds no frame, expected names like man_seg000.tif." in refused(
        lambda: read(dataset)
    )

    write_frame(dataset, "01", "003", made_up_cells())
    tifffile.imwrite(truth / "man_seg003.tif", made_up_cells()[:, 1:])
    message = refused(lambda: read(dataset))
    assert "man_seg003.tif: has (30, 89) pixels, expected (30, 90) as in t003.tif" in message
    tifffile.imwrite(truth / "man_seg003.tif", made_up_cells().astype(np.float32))
    assert "man_seg003.tif: holds float32 pixels" in refused(lambda: read(dataset))
    tifffile.imwrite(truth / "man_seg003.tif", np.stack([made_up_cells()] * 2))
    assert "man_seg003.tif: holds 2 pages of 1 channels" in refused(lambda: read(dataset))
    (truth / "man_seg003.tif").write_bytes(b"II*\0")
    assert "man_seg003.tif: cannot be decoded" in refused(lambda: read(dataset))


def zip_bytes(folder):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.tif")):
            archive.write(path, path.relative_to(folder.parent))
    return file.getvalue()


@pytest.fixture
def published(dataset, tmp_path, monkeypatch):
    """The made-up data set as if it were published; the bytes of its zip file."""
    content = zip_bytes(dataset)
    monkeypatch.delenv("UNET_JAX_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    checksum = {"PhC-C2DH-U373": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(cell_tracking, "SHA256", checksum)
    return content


def test_download_happens_once(published, serve_file, monkeypatch, tmp_path):
    address, requests = serve_file(published)
    monkeypatch.setattr(cell_tracking, "ADDRESS", address)
    for _ in range(2):
        folder = find_dataset("PhC-C2DH-U373")
        assert len(read(folder)) == 5
    assert len(requests) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["PhC-C2DH-U373"]


def test_own_copy_comes_before_the_download(published, dataset, tmp_path, monkeypatch):
    own = tmp_path / "own"
    (own / "ctc").mkdir(parents=True)
    dataset.rename(own / "ctc" / "PhC-C2DH-U373")
    monkeypatch.setenv("UNET_JAX_DATA", str(own))
    monkeypatch.setattr(cell_tracking, "ADDRESS", "http://127.0.0.1:9/none")
    assert find_dataset("PhC-C2DH-U373") == own / "ctc" / "PhC-C2DH-U373"


@pytest.mark.parametrize("damage", ["tampered", "truncated", "broken off", "not there"])
def test_a_bad_download_leaves_nothing_behind(published, serve_file, monkeypatch, tmp_path, damage):
    content = {
        "tampered": published[:500] + bytes([published[500] ^ 1]) + published[501:],
        "truncated": published[: len(published) // 2],
        "broken off": published[: len(published) // 2],
        "not there": b"gone",
    }[damage]
    settings = {"broken off": {"declared": len(published)}, "not there": {"status": 404}}
    address, _ = serve_file(content, **settings.get(damage, {}))
    monkeypatch.setattr(cell_tracking, "ADDRESS", address)
    message = refused(lambda: find_dataset("PhC-C2DH-U373"))
    assert message.startswith(address)
    says = "SHA-256 of the download is" if damage in ("tampered", "truncated") else "cannot be down"
    assert says in message
    assert list((tmp_path / "cache" / "unet_jax" / "ctc").iterdir()) == []


def test_real_sequences(real_data):
    folder = find_dataset("DIC-C2DH-HeLa")
    assert [len(read(folder, sequence)) for sequence in ("01", "02")] == [9, 9]
    cells = sum(len(np.unique(e.instances)) - 1 for e in read(folder, "01"))
    assert cells == 98
    assert len(read(folder, "02", "silver")) == 84
