"""Data larger than memory: read again for each step, and the same bit for bit."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from tests.test_fit import interrupt_at, log_without_time
from tests.test_training_images import examples_of
from tests.test_training_loop import CONFIGURATION, metrics
from unet_jax import InputError, RunFailed, checkpoint, evaluate, fit, preview, train
from unet_jax.configuration import read_configuration
from unet_jax.data import folder as data_folder
from unet_jax.data import known_folder, pixels, splits
from unet_jax.data.folder import read_folder
from unet_jax.data.splits import read_run
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.example import Example
from unet_jax.sources import Folder
from unet_jax.unread import Unread, digests_of, facts_of, image_digests, in_threads, names_of


class Lazy(Sequence):
    """A caller's own examples, of which it holds none."""

    def __init__(self, examples):
        self.examples, self.asked = examples, []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.asked.append(index)
        return Example(
            *(np.copy(x) if isinstance(x, np.ndarray) else x for x in self.examples[index])
        )


def touching(example):
    """The example with two kinds of cells, side by side."""
    cells = 1 + (np.arange(example.labels.shape[1]) // 9) % 2
    return example._replace(instances=np.where(example.labels > 0, cells, 0).astype(np.int32))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_sequence_of_ones_own_trains_to_the_same_bits(sparse):
    """Of images larger than what a tile reaches, and smaller ones."""
    sizes = [(200, 30), (31, 260), (20, 20), (150, 200)][2 * sparse :]
    examples = examples_of(*sizes, sparse=sparse)[0]
    examples = examples if sparse else [touching(e) for e in examples]
    configuration = replace(CONFIGURATION, train=replace(CONFIGURATION.train, batch_size=2))
    lazy = Lazy(examples)
    expected = metrics(train(examples, configuration))
    assert metrics(train(lazy, configuration)) == expected and len(expected) == 4
    assert len(lazy.asked) == 1 + len(sizes) + 4 * 2


def test_what_cannot_be_trained_on_is_refused_before_the_first_step():
    (good, *_), _ = examples_of((60, 60))
    for bad, message in (
        (
            good._replace(labels=np.full_like(good.labels, 2)),
            "holds class 2, but the network has 2",
        ),
        (good._replace(image=good.image[..., 0]), r"has 1 channel\(s\), expected 2 as in "),
    ):
        with pytest.raises(InputError, match=message):
            train(Lazy([good, bad]), CONFIGURATION)
    with pytest.raises(InputError, match="There are no examples"):
        train(Lazy([]), CONFIGURATION)


def test_an_image_that_is_another_one_by_now_ends_the_training():
    examples = examples_of((60, 60), (60, 60))[0]
    lazy = Lazy(examples)
    steps = train(lazy, CONFIGURATION)
    lazy.examples = [e._replace(labels=e.labels[:50]) for e in examples]
    with pytest.raises(RunFailed, match=r"has changed since the run began; its size was \(60"):
        metrics(steps)


def test_few_of_many_are_in_work_at_a_time():
    begun, ended = [], []
    for number in in_threads(lambda n: begun.append(n) or n, iter(range(500))):
        ended.append(number)
        assert len(begun) - len(ended) < 4 * (os.cpu_count() or 1)
    assert ended == list(range(500))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Ten images of cells with their masks."""
    monkeypatch.setattr(known_folder.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i, e in enumerate(synthetic_examples(0, 10, height=60, width=70)):
        tifffile.imwrite(tmp_path / "images" / f"p{i}.tif", e.image)
        tifffile.imwrite(tmp_path / "masks" / f"p{i}.tif", (255 * e.labels).astype(np.uint8))
    return tmp_path / "images", tmp_path / "masks"


@pytest.fixture
def memory(monkeypatch):
    """memory(bytes) is a machine that has so many for training images."""

    def memory(room):
        for module in (data_folder, splits):
            monkeypatch.setattr(module, "memory_for_images", lambda: room)

    return memory


@pytest.fixture
def files_read(monkeypatch):
    """The stems of the images read, one after the other."""
    stems, read = [], pixels.read_image

    def noting(path):
        stems.append(path.stem)
        return read(path)

    monkeypatch.setattr(pixels, "read_image", noting)
    return stems


LITTLE = 500_000  # bytes: the validation split fits, the others do not


def run_of(folders, config, **settings):
    images, labels = map(str, folders)
    config.data = {"source": "folder", "images": images, "labels": labels} | settings
    return config


def data_of(folders, **settings):
    images, labels = map(str, folders)
    return Folder(images=images, labels=labels, **settings)


def test_a_run_on_a_folder_larger_than_memory(
    folders, memory, files_read, tiny_config, tmp_path, monkeypatch
):
    """The same run bit for bit; it goes on without looking at all images once more."""
    config = run_of(folders, tiny_config, scale=0.8)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(config, whole)
    scores = repr(evaluate(whole).scores)
    del files_read[:]

    memory(LITTLE)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 6, signal.SIGTERM)
        assert fit(config, parts).step < 12
    assert 2 * 10 < len(files_read) < 4 * 10  # two looks, steps, validation and some for doubts
    del files_read[:]
    fit(config, parts)
    assert len(files_read) < 2 * 10
    assert log_without_time(parts) == log_without_time(whole)
    records = [checkpoint.describe(workdir, 12) for workdir in (parts, whole)]
    assert records[0] == records[1]
    assert repr(evaluate(parts).scores) == scores
    rows = preview(config, parts).text.splitlines()
    assert rows[0].split() == ["train", "validation", "test"]
    assert rows[1].split() == ["images", "6", "2", "2"]


def test_all_that_is_known_is_that_of_examples_in_memory(folders, memory, caplog):
    data = data_of(folders, scale=0.5)
    stored, seen = read_run(data, 2)
    of_fold = read_run(data, 2, fold=1, folds=3)[0]
    memory(LITTLE)
    unread, unread_seen = read_run(data, 2)
    assert "does not fit into memory" in caplog.text
    assert isinstance(unread_seen["train"], Unread) and isinstance(unread_seen["validation"], list)
    for split in stored:
        for here, there in ((stored, unread), (seen, unread_seen)):
            assert len(here[split]) == len(there[split])
            for expected, example in zip(here[split], there[split], strict=True):
                assert expected.name == example.name
                for array, other in zip(expected[1:], example[1:], strict=True):
                    np.testing.assert_array_equal(array, other, strict=True)
    for examples in (unread["train"], unread_seen["train"]):
        for example, facts in zip(examples, examples.facts, strict=True):
            known = {"sha256": facts.sha256, "image_sha256": facts.image_sha256}
            assert facts_of(example, 2)._replace(**known, seen=facts.seen) == facts
    assert digests_of(stored["train"]) == digests_of(unread["train"])
    assert image_digests(stored["test"]) == image_digests(unread["test"])
    again = read_run(data, 2, fold=1, folds=3)[0]
    assert {s: names_of(e) for s, e in again.items()} == {
        s: names_of(e) for s, e in of_fold.items()
    }


@pytest.mark.parametrize(
    ("values", "channels", "settings"),
    [
        ([-1, 0, 1], 1, {"mask_rule": "instances", "minus_one": "background"}),
        ([0, 1, 2], 3, {"mask_rule": "classes", "ignore_value": 0}),
        ([0, 300], 1, {"mask_rule": "binary"}),
    ],
)
def test_all_rules_are_those_of_examples_in_memory(folders, memory, values, channels, settings):
    for i in range(10):
        rng = np.random.default_rng(i)
        mask = np.repeat(rng.choice(values, (2, 3, 35)), 20, 1).astype(np.int16)
        image = np.repeat(rng.integers(0, 99, (2, 60, 35, 1), np.uint8), channels, -1)
        tifffile.imwrite(folders[0] / f"p{i}.tif", image[..., 0] if channels == 1 else image)
        tifffile.imwrite(folders[1] / f"p{i}.tif", mask)
    options = {"classes": 2, "ignore_value": -1} | settings
    expected = read_folder(*folders, **options)
    memory(0)
    for _ in range(2):  # the second time with what is known
        unread = read_folder(*folders, **options)
        assert isinstance(unread, Unread) and len(unread) == len(expected) == 20
        for here, there in zip(expected, unread, strict=True):
            assert here.name == there.name
            for array, other in zip(here[1:], there[1:], strict=True):
                np.testing.assert_array_equal(array, other, strict=True)


def test_what_is_known_is_forgotten_with_a_file_that_changes(folders, memory, files_read):
    memory(LITTLE)

    def facts():
        return read_folder(*folders, mask_rule="binary", classes=2, ignore_value=-1).facts

    first = facts()
    del files_read[:]
    assert facts() == first and not files_read
    file = folders[1] / "p3.tif"
    tifffile.imwrite(file, tifffile.imread(file)[::-1])
    changed = facts()
    assert [a.name for a, b in zip(first, changed, strict=True) if a != b] == ["p3"]
    for damaged in ("", "[1, 2]", '[[[1, 60, 70, 1]], 0]\n["p", 1]\n'):
        for kept in (folders[0].parent / "cache").rglob("*.jsonl"):
            kept.write_text(damaged)
        assert facts() == changed


def test_a_stack_is_not_read_again_for_each_page(folders, memory, files_read):
    memory(LITTLE)
    for folder in folders:
        pages = [tifffile.imread(file) for file in sorted(folder.iterdir())]
        for file in folder.iterdir():
            file.unlink()
        tifffile.imwrite(folder / "stack.tif", np.stack(pages), photometric="minisblack")
    examples = read_folder(*folders, mask_rule="binary", classes=2, ignore_value=-1)
    assert [example.image.shape for example in examples] == [(60, 70)] * 10
    assert files_read == ["stack"] * 2  # what is in it, and then for all of its pages


def test_an_image_that_is_gone_ends_the_run(folders, memory, tiny_config, tmp_path):
    memory(LITTLE)
    config = run_of(folders, tiny_config)
    seen = read_run(data_of(folders), 2)[1]["train"]
    steps = train(seen, read_configuration(config))
    next(steps)
    for file in folders[0].iterdir():
        file.unlink()
    with pytest.raises(RunFailed, match=r"p\d.tif: cannot be read"):
        metrics(steps)


def test_a_validation_split_larger_than_memory_is_refused(folders, memory):
    memory(50_000)
    with pytest.raises(InputError) as refusal:
        read_run(data_of(folders, validation_fraction=0.3), 2)
    (line,) = refusal.value.args
    assert line.startswith("The validation split of 3 images would take 0.0 GiB, expected at most")
    assert line.endswith("give a smaller config.data.validation_fraction.")
