"""Where time goes: of a step kernel by kernel, of the training and of a prediction by function.

Milliseconds of one step or one image; the largest first. `--cases` as of `training_step`.
"""

import cProfile
import pstats
import re
import tempfile
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from benchmarks.loop import a_run, go_on
from benchmarks.side_by_side import rounded, timed
from benchmarks.training_step import Case, ours
from unet_jax import predict_tiled

_GPU_CASES = ("bfloat16:1:64", "bfloat16:8:64")
_CPU_CASES = ("float32:1:16",)
_QUICK_CASES = ("float32:1:4",)
_STEPS = 10


def rows(quick, cases=None):
    """Rows of each case, then of the loop of the first, then of an image."""
    on_gpu = jax.default_backend() != "cpu"
    cases = cases or (_QUICK_CASES if quick else _GPU_CASES if on_gpu else _CPU_CASES)
    cases = [Case.read(text, quick) for text in cases]
    for case in cases:
        with jax.default_matmul_precision(case.precision):
            yield from (case.row() | row for row in kernels(case))
    side = 100 if quick else 4096 if on_gpu else 1024
    image = np.random.default_rng(0).integers(0, 255, (side, side)).astype(np.uint8)
    with jax.default_matmul_precision(cases[0].precision):
        run = a_run(cases[0])
        model = next(run).model()
        yield from functions("train", lambda: go_on(run, _STEPS), per=_STEPS)
        predict_tiled(model, image)
        yield from functions("predict_tiled", lambda: predict_tiled(model, image))


def kernels(case):
    """The step as a whole, then its kinds of kernels, then its kernels."""
    steps, _, compiled = ours(case)
    steps(5)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            wall = timed(lambda: steps(_STEPS))
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    # Where in the project an operation comes from, such as jvp(UNet)/expanding1_conv1.
    origin = dict(re.findall(r'%([\w.\-]+) = [^\n]*?op_name="([^"]*)"', compiled.as_text()))
    spent, calls = Counter(), Counter()
    for event in device_events(trace):
        operation = dict(event.stats).get("hlo_op", event.name)
        spent[operation] += event.duration_ns / _STEPS / 1e6
        calls[operation] += 1 / _STEPS
    yield {
        "of": "step",
        "milliseconds": rounded(1e3 * wall / _STEPS),
        "busy": rounded(sum(spent.values())),
        "calls": rounded(sum(calls.values())),
    }
    kinds = Counter()
    for operation, milliseconds in spent.items():
        kinds[re.sub(r"[.\d]+$", "", operation)] += milliseconds
    for kind, milliseconds in kinds.most_common(15):
        yield {"of": "kind", "milliseconds": rounded(milliseconds), "name": kind}
    for operation, milliseconds in spent.most_common(50):
        yield {
            "of": "kernel",
            "milliseconds": rounded(milliseconds),
            "calls": rounded(calls[operation]),
            "name": f"{operation} {origin.get(operation, '')[-80:]}",
        }


def device_events(trace):
    """What ran on a GPU; on a CPU, all operations of the compiled code."""
    on_gpu = jax.default_backend() != "cpu"
    for plane in trace.planes:
        for line in plane.lines:
            if on_gpu and not ("GPU" in plane.name and "Stream" in line.name):
                continue
            for event in line.events:
                if on_gpu or "hlo_op" in dict(event.stats):
                    yield event


def functions(of, call, per=1):
    """The functions of the host in which a call spends its time."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    stats = pstats.Stats(profiler)
    yield {"of": of, "milliseconds": rounded(1e3 * stats.total_tt / per)}
    # Of each function its calls that recur, all calls, own seconds, and those of what it calls.
    for function, (_, calls, own, *_) in sorted(stats.stats.items(), key=lambda f: -f[1][2])[:12]:
        file, line, name = function
        yield {
            "of": of,
            "milliseconds": rounded(1e3 * own / per),
            "calls": rounded(calls / per),
            "name": f"{name} {'/'.join(Path(file).parts[-2:])}:{line}",
        }
