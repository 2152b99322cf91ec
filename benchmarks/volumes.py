"""What Dask adds to the prediction of a volume, on this machine.

- `no work`: the time of all processors for a block that does nothing, of client, scheduler and
  workers together; a block of the default size takes seconds.
- `two workers`: made-up images of 2048x2048 pixels, a block each, at a width of 16, by two workers
  of one thread, beside two plain loops of one thread in processes of their own, over half of the
  images each. They take turns; statistics, pyramids and listing are included.

Run it on a machine with two cores that do nothing else.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import psutil

from benchmarks.prediction import a_model
from benchmarks.side_by_side import alternate, rounded, summary
from unet_jax.files.ome_zarr import Axes
from unet_jax.volumes.blocks import Block, Job
from unet_jax.volumes.cluster import common_environment, local_workers, on_workers
from unet_jax.volumes.output import NewImage, create_output
from unet_jax.volumes.predict_volume import predict_volume

_HERE = Path(__file__).resolve()


def rows(quick):
    """One row for each comparison."""
    side, images, width = (256, 4, 2) if quick else (2048, 8, 16)
    with tempfile.TemporaryDirectory() as folder, local_workers(2) as client:
        source = Path(folder, "in.zarr")
        a_volume(source, images, side)
        yield no_work(client, source, 100 if quick else 1000)
        yield from two_workers(client, source, width, rounds=1 if quick else 5)


def a_volume(source, images, side):
    """Made-up images, one for each depth."""
    axes = Axes("zyx", (1.0, 1.0, 1.0), (None,) * 3, (0.0, 0.0, 0.0))
    array = create_output(source, {}, NewImage(axes, (images, side, side), "uint8", side, side))
    for z in range(images):
        pixels = np.random.default_rng(z).integers(0, 256, (side, side), np.uint8)
        array.image[0][z].write(pixels).result()


def no_work(client, source, blocks):
    """The processors' time for each block."""
    job = Job(str(source), str(source), a_model(2), ("mask",), "none", None, 64, 64, {})
    job.made_with["versions"] = common_environment(client)
    me = psutil.Process()

    def spent():
        everyone = [me, *me.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in everyone)

    with on_workers(client, job) as do:
        list(do(nothing, [Block(0, 0, 0, i) for i in range(20)]))
        before = spent(), time.perf_counter()
        list(do(nothing, [Block(0, 0, 1, i) for i in range(blocks)]))
        after = spent(), time.perf_counter()
    cpu, wall = (rounded((b - a) / blocks) for a, b in zip(before, after, strict=True))
    return {"contestant": "no work", "seconds": wall, "cpu_seconds": cpu, "of_5_seconds": cpu / 5}


def nothing(job, block):
    """A stage that does nothing."""


def two_workers(client, source, width, rounds):
    """Rows of both contestants."""
    loops = [loop(source, width, part) for part in (0, 1)]
    turn = iter(range(1000))

    def by_workers():
        predict_volume(
            a_model(width), source, a_result(source, next(turn)), client=client, write=()
        )

    def by_loops():
        name = a_result(source, next(turn))
        for process in loops:
            print(name, file=process.stdin, flush=True)
        for process in loops:
            process.stdout.readline()

    by_loops(), by_workers()  # compile, or fetch what is compiled
    contestants = {"two workers": by_workers, "two loops": by_loops}
    seconds = alternate(contestants, rounds)
    for process in loops:
        process.stdin.close()
        process.wait()
    for name in contestants:
        yield {"contestant": name} | summary(seconds, name, ours="two workers")


def a_result(source, number):
    """Where to write; the one before is gone."""
    shutil.rmtree(source.with_name(f"{number - 1}.zarr"), ignore_errors=True)
    return source.with_name(f"{number}.zarr")


def loop(source, width, part):
    """A process of one thread that predicts half of the images when it is told where to."""
    command = [sys.executable, str(_HERE), str(source), str(width), str(part)]
    path = os.environ | {"PYTHONPATH": str(_HERE.parents[1]), "NPROC": "1"}
    return Popen(command, env=path, stdin=PIPE, stdout=PIPE, text=True)


def work(source, width, part):
    """Predicts half of the images into the folder that each line of the input names."""
    model = a_model(width)
    for name in map(str.strip, sys.stdin):
        predict_volume(model, source, name, write=(), part=(part, 2))
        print(flush=True)


if __name__ == "__main__":
    work(sys.argv[1], *map(int, sys.argv[2:]))
