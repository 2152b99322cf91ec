"""Files of OME and Micro-Manager: placed by their own metadata, read from themselves alone."""

import functools
import itertools
import json
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet_jax.errors import InputError
from unet_jax.files.hyperstack import Frame, read_frame
from unet_jax.files.images import read_image, read_mask

ME, SIBLING = "urn:uuid:me", "urn:uuid:sibling"
ORDER_UNKNOWN = "the OME metadata do not say which channel, slice and time point the pages"


def pages_of(count, height=4, width=5):
    """uint8 [count, height, width]: page k is of grey value k."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, height, width))


def image_xml(entries, order="XYCZT", attributes="", **sizes):
    sizes = {"C": 1, "Z": 1, "T": 1} | sizes
    sizes = " ".join(f'Size{axis}="{size}"' for axis, size in sizes.items())
    return (
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="{order}" SizeX="5" SizeY="4" '
        f"{sizes} {attributes}>{''.join(entries)}</Pixels></Image>"
    )


def entry(file=None, uuid=None, **attributes):
    """A TiffData element; First... and so on without a file are those of the file itself."""
    attributes = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    named = f'<UUID FileName="{file}">{uuid}</UUID>' if file else ""
    return f"<TiffData {attributes}>{named}</TiffData>"


def ome_xml(*images, uuid=None):
    uuid = f' UUID="{uuid}"' if uuid else ""
    return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{uuid}>{"".join(images)}</OME>'


def write_ome(path, xml, pixels, **options):
    """A TIFF with this description, whatever it says."""
    tifffile.imwrite(
        path, pixels, description=xml, metadata=None, photometric="minisblack", **options
    )


def values(pixels):
    """The grey values of pages and channels, [pages][channels]."""
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0].tolist()


@pytest.mark.parametrize("letters", list(itertools.permutations("CZT")))
def test_every_order_of_dimensions(tmp_path, letters):
    sizes = {"C": 2, "Z": 3, "T": 4}
    shape = [sizes[axis] for axis in letters[::-1]]  # the first letter is the fastest
    numbers = np.arange(24).reshape(shape)
    path = tmp_path / "a.ome.tif"
    xml = ome_xml(image_xml([entry(IFD=0, PlaneCount=24)], "XY" + "".join(letters), **sizes))
    write_ome(path, xml, pages_of(24))
    expected = numbers.transpose([letters[::-1].index(axis) for axis in "TZC"])
    for mapped in (False, True):
        found = read_image(path, mapped=mapped)
        assert values(found) == expected.reshape(12, 2).tolist()
        # Where pages would have to be moved, they are not left in the file.
        is_left = mapped and "TZ" in "".join(letters[::-1])
        assert isinstance(found, np.memmap) == is_left
    assert read_frame(path, 12)[:2] == ("TZ", (4, 3))


SET = [entry("b.tif", SIBLING, FirstZ=z, IFD=z, PlaneCount=1) for z in range(2)]
SET += [entry("a.tif", ME, FirstZ=z, IFD=z - 2, PlaneCount=1) for z in range(2, 4)]
BACKWARDS = {"FirstZ": 0, "IFD": 1}, {"FirstZ": 1, "IFD": 0}


@pytest.mark.parametrize(
    ("xml", "expected", "axes"),
    [
        # Without a file's name it is this one.
        (ome_xml(image_xml([entry(**place) for place in BACKWARDS], Z=2)), [1, 0], "Z"),
        # Under its name, or renamed: by its UUID, or as the only file there is.
        (ome_xml(image_xml([entry("A.tif", ME, **p) for p in BACKWARDS], Z=2)), [1, 0], "Z"),
        (ome_xml(image_xml([entry("x", ME, **p) for p in BACKWARDS], Z=2), uuid=ME), [1, 0], "Z"),
        (ome_xml(image_xml([entry("x.tif", ME, **p) for p in BACKWARDS], Z=2)), [1, 0], "Z"),
        # One of two files, which bears the other's name: the UUID counts.
        (ome_xml(image_xml(SET, Z=4), uuid=ME), [0, 1], "Z"),
        (ome_xml(image_xml(SET[::-1], Z=4), uuid=SIBLING), [0, 1], "Z"),
        # A whole file for each entry.
        (
            ome_xml(
                image_xml([entry("b.tif", SIBLING), entry("a.tif", ME, FirstT=2)], "XYZCT", T=4)
            ),
            [0, 1],
            "T",
        ),
        # Positions of an experiment, one of them here, or both.
        (
            ome_xml(
                image_xml([entry("b.tif", SIBLING, IFD=0, PlaneCount=2)], T=2),
                image_xml([entry("a.tif", ME, IFD=0, PlaneCount=2)], T=2),
                uuid=ME,
            ),
            [0, 1],
            "T",
        ),
        (ome_xml(image_xml([entry(IFD=1)]), image_xml([entry(IFD=0)])), [1, 0], "Z"),
        # As OME was before 2008.
        (ome_xml(image_xml([entry(IFD=0, NumPlanes=2)], T=2)), [0, 1], "T"),
    ],
)
def test_own_planes_are_placed(tmp_path, caplog, xml, expected, axes):
    write_ome(tmp_path / "b.tif", xml, pages_of(2) + np.uint8(100))
    write_ome(tmp_path / "a.tif", xml, pages_of(2))
    for mapped in (False, True):
        assert values(read_image(tmp_path / "a.tif", mapped=mapped)) == [[k] for k in expected]
    assert read_frame(tmp_path / "a.tif", 2)[:2] == (axes, (2,))
    assert not caplog.records


@pytest.mark.parametrize(
    "xml",
    [
        ome_xml('<BinaryOnly MetadataFile="b.ome.tif" UUID="urn:uuid:sibling"/>', uuid=ME),
        ome_xml('<BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:x"/>', uuid=ME),
        ome_xml('<Plate ID="Plate:0"/>'),
        # Other files only.
        ome_xml(image_xml(SET[:2], Z=4), uuid=ME),
        ome_xml(image_xml([entry("c.tif", "c", IFD=0), entry("b.tif", "b", IFD=0)], Z=2)),
        # One page for two planes; beyond the size; two channels of one time, one of another.
        ome_xml(image_xml([entry(IFD=0), entry(FirstZ=1, IFD=0)], Z=2)),
        ome_xml(image_xml([entry(FirstZ=z, IFD=z) for z in (2, 3)], Z=2)),
        ome_xml(image_xml([entry(FirstZ=1, IFD=0, PlaneCount=2)], Z=2)),
        ome_xml(
            image_xml(
                [entry("b.tif", "b"), entry("a.tif", ME, FirstC=1, IFD=0, PlaneCount=2)], C=2, T=2
            )
        ),
        ome_xml(image_xml([*SET[:1], entry("a.tif", ME, IFD=0, PlaneCount=2)], Z=10**30)),
    ],
)
def test_pages_that_are_not_described_are_read_as_they_come(tmp_path, caplog, xml):
    write_ome(tmp_path / "a.tif", xml, pages_of(2))
    assert values(read_image(tmp_path / "a.tif")) == [[0], [1]]
    assert read_frame(tmp_path / "a.tif", 2).axes == "Z"
    (notice,) = caplog.records
    assert notice.getMessage().startswith(f"{tmp_path}: {ORDER_UNKNOWN}")


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (ome_xml(image_xml([entry(IFD=0, PlaneCount=3)], Z=3)), "3 pages"),
        (ome_xml(image_xml([entry("x", ME, FirstZ=z, IFD=z) for z in range(3)], Z=3)), "3 pages"),
        (ome_xml(image_xml([*SET, entry("a.tif", ME, IFD=2)], Z=5), uuid=ME), "3 pages"),
        (ome_xml(image_xml([entry(IFD=0)])), "1 pages"),
        (ome_xml(image_xml([entry(IFD=0, PlaneCount=2)], Z=3)), "3 pages"),
        (ome_xml(image_xml([entry()], Z=3)), "3 pages"),
        (ome_xml(image_xml([entry(IFD=0, PlaneCount=10**12)], Z=10**12)), "1000000000000 pages"),
        (
            ome_xml(image_xml([entry(IFD=0, PlaneCount=n) for n in (10**9, 2 - 10**9)], Z=2)),
            "1999999998 pages",
        ),
        (ome_xml(image_xml([entry(IFD=0, PlaneCount=2)], "XYZ", Z=2)), "DimensionOrder"),
        (ome_xml(image_xml([entry(IFD=0, PlaneCount=2)], Z="two")), "invalid literal"),
        (ome_xml("<Image></OME>"), "mismatched tag"),
        ("<!DOCTYPE x [<!ENTITY a 'aaaa'>]>" + ome_xml(), "entities"),
    ],
)
def test_metadata_that_are_damaged_or_count_other_pages_are_refused(tmp_path, xml, says):
    path = tmp_path / "a.tif"
    write_ome(path, xml, pages_of(2))
    begun = time.perf_counter()
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert time.perf_counter() - begun < 30  # as many pages as declared would take for ever
    text = str(caught.value)
    assert text.startswith(f"{path}: holds 2 page(s), but its description says otherwise (")
    assert says in text and len(text.splitlines()) == 1


def test_samples_of_a_pixel_are_channels_of_ome_too(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (2, 4, 5, 3), np.uint8)
    xml = ome_xml(image_xml([entry(IFD=0, PlaneCount=2)], C=3, T=2))
    for planar, stored in (("contig", rgb), ("separate", np.moveaxis(rgb, -1, 1))):
        write_ome(tmp_path / "a.tif", xml, stored, planarconfig=planar)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), rgb, strict=True)
        assert read_frame(tmp_path / "a.tif", 2)[:2] == ("T", (2,))


def test_pixel_size_is_that_of_the_own_image(tmp_path):
    images = [
        image_xml([entry(file, uuid, IFD=0)], attributes=f'PhysicalSizeX="{x}" PhysicalSizeY="2"')
        for file, uuid, x in (("b.tif", SIBLING, 0.5), ("a.tif", ME, 0.25))
    ]
    write_ome(tmp_path / "a.tif", ome_xml(*images, uuid=ME), pages_of(1))
    assert read_frame(tmp_path / "a.tif", 1) == Frame("", (), (0.25, 2), None, None, "um")


def micro_manager(path, places, summary, major=0, shift=0):
    """A file as Micro-Manager writes it; places are channel, z, time, position of each page."""
    summary = json.dumps(summary).encode()
    if major:
        head = struct.pack("<IIII", 483729, major, 2355492, len(summary)) + summary
    else:
        head = struct.pack("<8I", 54773648, 0, 483765892, 0, 99384722, 0, 2355492, len(summary))
        head += summary
    data, offsets = bytearray(b"II*\0\0\0\0\0" + head), []
    for page in pages_of(len(places)):
        offset = len(data)
        struct.pack_into("<I", data, 4 if not offsets else offsets[-1] + 2 + 12 * 10, offset)
        offsets.append(offset)
        tags = {256: 5, 257: 4, 258: 8, 259: 1, 262: 1, 273: offset + 126, 277: 1, 278: 4, 279: 20}
        data += struct.pack("<H", 10)
        for tag, value in tags.items():
            data += struct.pack("<HHII", tag, 4, 1, value)
        json_at = 8 + len(head) - len(summary)
        data += struct.pack("<HHIII", 51123, 2, len(summary), json_at, 0) + page.tobytes()
    if not major:
        struct.pack_into("<I", data, 12, len(data))
        data += struct.pack("<II", 3453623, len(places))
        for place, offset in zip(places, offsets, strict=True):
            data += struct.pack("<5I", *place, offset + shift)
    path.write_bytes(data)


SUMMARY = {"MicroManagerVersion": "1.4", "Prefix": "x", "Frames": 4, "Channels": 2, "Slices": 1}


def test_micro_manager_files_are_placed_by_their_own_index(tmp_path):
    path = tmp_path / "x_MMStack_1.ome.tif"
    micro_manager(path, [(1, 0, 2, 0), (0, 0, 2, 0), (1, 0, 3, 0), (0, 0, 3, 0)], SUMMARY)
    assert values(read_image(path)) == [[1, 0], [3, 2]]
    assert read_frame(path, 2).axes == "T"
    # An index that lacks a channel.
    micro_manager(path, [(1, 0, 2, 0), (0, 0, 2, 0), (1, 0, 3, 0)], SUMMARY)
    assert values(read_image(path)) == [[0], [1], [2]]


OPENED = set()


@functools.cache  # it stays for good
def watch_files():
    def note(event, args):
        if event in ("open", "os.listdir", "os.scandir", "glob.glob") and "." in OPENED:
            OPENED.add(os.path.abspath(args[0]) if isinstance(args[0], str | Path) else args[0])

    sys.addaudithook(note)


def test_no_other_file_is_opened_whatever_the_metadata_name(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    others = ["b.tif", "../b.tif", str(tmp_path / "b.tif"), "x_MMStack_2.tif", "/dev/null"]
    for other in others[:4]:
        tifffile.imwrite(folder / other, pages_of(1) + np.uint8(100), photometric="minisblack")
    files = []
    for number, other in enumerate(others):
        for name, uuid in (("set", ME), ("named", None)):
            files.append(folder / f"{name}{number}.tif")
            planes = [entry(other, SIBLING, IFD=0), entry("z.tif", ME, FirstT=1, IFD=0)]
            write_ome(files[-1], ome_xml(image_xml(planes, T=2), uuid=uuid), pages_of(1))
        files.append(folder / f"only{number}.tif")
        xml = ome_xml(f'<BinaryOnly MetadataFile="{other}" UUID="{SIBLING}"/>')
        write_ome(files[-1], xml, pages_of(1))
    for shift in (0, 9):  # pages are where the index says, or are not
        files.append(folder / f"x_MMStack_{shift}.tif")
        micro_manager(files[-1], [(0, 0, 0, 0)], SUMMARY, shift=shift)
    files.append(folder / "x_NDTiffStack.tif")
    micro_manager(files[-1], [(0, 0, 0, 0)], SUMMARY, major=3)
    record = b'{"time":0}'
    (folder / "NDTiff.index").write_bytes(
        struct.pack("<I", len(record)) + record + struct.pack("<I", 5) + b"b.tif" + bytes(32)
    )
    read_frame(files[0], read_image(files[0]).shape[0])  # loads what is loaded late
    watch_files()
    for file in files:
        OPENED.add(".")  # from here
        found = read_image(file), read_image(file, mapped=True), read_mask(file)
        read_frame(file, 1)
        OPENED.remove(".")
        assert [values(pixels) for pixels in found] == [[[0]]] * 3
        assert OPENED == {str(file)}
        OPENED.clear()
