"""The networks that come with the package: to predict with at once, or to begin a training with.

Each is a folder like a run's, with its checkpoint, the settings by which it finds cells, if they
were tuned, and a card, `README.md`: what it was trained on, how good it is, and where it fails.
"""

from pathlib import Path

_HERE = Path(__file__).parent
#: By the name that stands for the folder of a run.
NETWORKS = ("membranes", "nuclei")


def run_folder(checkpoint: str | Path) -> Path:
    """The folder of a run, or by its name that of a network of the package."""
    folder = Path(checkpoint)
    # A run of the user's own under such a name comes first; a folder of images is none.
    is_run = any((folder / name).exists() for name in ("checkpoints", "fold0", "log.jsonl"))
    return _HERE / folder if str(folder) in NETWORKS and not is_run else folder


def is_pretrained(folder: Path) -> bool:
    """Whether it is one of the package's, which nothing is written into."""
    return folder.resolve().parent == _HERE.resolve()
