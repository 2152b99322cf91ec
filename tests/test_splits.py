import numpy as np
import pytest

from unet_jax.data import splits
from unet_jax.data.splits import read_run
from unet_jax.errors import InputError
from unet_jax.example import IGNORED, Example
from unet_jax.sources import read_data

REMEDIES = {
    "folder": "annotate more images, or try another config.data.split_seed.",
    "cell_tracking": "give another config.data.train_sequence.",
    "isbi2012": "give other ranges for config.data.train and config.data.validation.",
    "synthetic": "give other ranges for config.data.train and config.data.validation.",
}


@pytest.fixture
def run_of(monkeypatch):
    """Reads a run whose splits hold one image each, of these labels."""

    def run_of(source, train, validation, test):
        def example(name, labels):
            labels = np.array([labels], np.int32)
            return Example(name, labels, labels, np.maximum(labels, 0))

        stored = {
            "train": [example("a", train), example("b", [IGNORED] * len(train))],
            "validation": [example("c", validation)],
            "test": [example("d", test)],
        }
        monkeypatch.setattr(splits, "read_splits", lambda data, classes: stored)
        return read_run(read_data({"source": source}), 3)

    return run_of


@pytest.mark.parametrize("source", REMEDIES)
def test_a_training_split_without_anything_to_learn_is_refused(run_of, source):
    for label in (0, 2):
        with pytest.raises(InputError) as refusal:
            run_of(source, [label, label, IGNORED], [0, 1], [0, 1])
        assert str(refusal.value) == (
            f"All annotated pixels of the train split are of class {label}, so there is nothing to"
            f" learn; {REMEDIES[source]}"
        )
    for split, labels in {"train": ([IGNORED], [0]), "validation": ([0, 1], [IGNORED])}.items():
        with pytest.raises(InputError) as refusal:
            run_of(source, *labels, [0])
        assert str(refusal.value) == (
            f"All pixels of the {split} split are ignored, expected some annotated ones;"
            f" {REMEDIES[source]}"
        )


def test_folds_are_refused_before_the_first_one_is_trained(monkeypatch):
    def example(number, label):
        labels = np.array([[label, max(label - 1, IGNORED)]], np.int32)
        return Example(f"{number}", labels, labels, np.maximum(labels, 0))

    labels = 1, 1, 1, IGNORED
    stored = {
        "train": [example(number, label) for number, label in enumerate(labels)],
        "validation": [example(4, 1)],
        "test": [example(5, 1)],
    }
    monkeypatch.setattr(splits, "read_splits", lambda data, classes: dict(stored))
    for fold in range(5):
        with pytest.raises(InputError, match="All pixels of the validation split are ignored"):
            read_run(read_data({"source": "folder"}), 2, fold=fold, folds=5)
    assert len(read_run(read_data({"source": "folder"}), 2, fold=1, folds=2)[0]["train"]) == 3


def test_other_splits_without_a_cell_are_noticed(run_of, caplog):
    stored, seen = run_of("folder", [0, 1], [0, 0], [0, IGNORED])
    assert [len(part) for part in stored.values()] == [len(part) for part in seen.values()]
    assert [record.getMessage() for record in caplog.records] == [
        f"No image of the {split} split holds a cell, so its scores say nothing about cells."
        for split in ("validation", "test")
    ]
    caplog.clear()
    run_of("folder", [0, 1], [0, 2], [1, 1])
    assert not caplog.records
