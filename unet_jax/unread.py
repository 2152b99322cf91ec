"""Examples that do not fit into memory: what is known of each, and how to read it again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Optional, TypeVar, overload

import numpy as np

from unet_jax.example import IGNORED, Example, image_sha256, sha256
from unet_jax.hardware import cpu_cores

_T = TypeVar("_T")
_U = TypeVar("_U")


class Facts(NamedTuple):
    """What is known about an example without its pixels.

    Attributes:
      name: the name of the example.
      size: height and width in pixels.
      channels: of the image.
      pixels: the number of pixels of each class, and last of the ignored ones.
      sha256: see `example.sha256`; empty if it is not needed.
      image_sha256: see `example.image_sha256`; empty if it is not needed.
      seen: the same facts as the network sees it: at the run's scale, touching cells separated.
    """

    name: str
    size: tuple[int, int]
    channels: int
    pixels: tuple[int, ...]
    sha256: str = ""
    image_sha256: str = ""
    seen: Optional["Facts"] = None


class Unread(Sequence[Example]):
    """Examples that are read each time they are asked for."""

    def __init__(self, read: Callable[[int], Example], facts: Sequence[Facts]):
        """As many examples as there are facts; `read` is called in several threads at once."""
        self._read, self.facts = read, facts

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.facts)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index):
        """One of them, or a list of several, read now."""
        numbers = range(len(self))[index]
        return [*map(self._read, numbers)] if isinstance(index, slice) else self._read(numbers)

    def __add__(self, others: "Unread") -> "Unread":
        """These, followed by the others."""
        end = len(self)
        return Unread(
            lambda i: self._read(i) if i < end else others._read(i - end),
            [*self.facts, *others.facts],
        )

    def changed(self, change: Callable[[Example], Example], facts: Sequence[Facts]) -> "Unread":
        """The same examples, each changed after it has been read."""
        return Unread(lambda i: change(self._read(i)), facts)

    def chosen(self, numbers: Sequence[int]) -> "Unread":
        """Some of them, in this order."""
        return Unread(lambda i: self._read(numbers[i]), [self.facts[n] for n in numbers])


#: Of a data set: in memory, or not.
Examples = list[Example] | Unread


def chosen(examples: Examples, numbers: Sequence[int]) -> Examples:
    """Some of the examples, in this order; nothing is read."""
    if isinstance(examples, Unread):
        return examples.chosen(numbers)
    return [examples[number] for number in numbers]


def names_of(examples: Examples) -> list[str]:
    """The names of the examples; nothing is read."""
    return [e.name for e in (examples.facts if isinstance(examples, Unread) else examples)]


def sizes_of(examples: Examples) -> list[tuple[int, ...]]:
    """Height and width of each example; nothing is read."""
    if isinstance(examples, Unread):
        return [facts.size for facts in examples.facts]
    return [example.labels.shape for example in examples]


def digests_of(examples: Examples) -> dict[str, str]:
    """The `sha256` of each example by its name."""
    if isinstance(examples, Unread):
        return {facts.name: facts.sha256 for facts in examples.facts}
    return {example.name: sha256(example) for example in examples}


def image_digests(examples: Examples) -> list[tuple[str, str]]:
    """Name and `image_sha256` of each example."""
    if isinstance(examples, Unread):
        return [(facts.name, facts.image_sha256) for facts in examples.facts]
    return [(example.name, image_sha256(example.image)) for example in examples]


def pixels_of(examples: Examples, classes: int) -> np.ndarray:
    """int64 [N, classes + 1]: the number of pixels of each class in each example, ignored last."""
    if isinstance(examples, Unread):
        return np.array([facts.pixels for facts in examples.facts])
    return np.array([_pixels(example.labels, classes) for example in examples])


def _pixels(labels, classes):
    return np.bincount(np.where(labels == IGNORED, classes, labels).ravel(), None, classes + 1)


def facts_of(example: Example, classes: int) -> Facts:
    """The facts about an example, without digests."""
    height, width = example.labels.shape
    return Facts(
        example.name,
        (height, width),
        example.channels,
        tuple(_pixels(example.labels, classes).tolist()),
    )


def annotated_share_of(facts: Sequence[Facts]) -> float:
    """`example.annotated_share` of these examples."""
    pixels = np.sum([f.pixels for f in facts], 0)
    return float(pixels[:-1].sum() / pixels.sum())


def in_threads(function: Callable[[_T], _U], items: Iterable[_T]) -> Iterator[_U]:
    """The function's result for each item, in order; a few at a time, as they may be large."""
    items, threads = iter(items), cpu_cores()
    with ThreadPoolExecutor(threads) as pool:
        while some := [*islice(items, 4 * threads)]:
            yield from pool.map(function, some)
