"""What uncertainty is worth: where the errors are, and what is learnt from images chosen by it.

Where: `nuclei` on the fluorescence images of `dsb2018` in UNET_JAX_DATA, which it has not seen. The
share of the wrong pixels that lie among the least sure 10 %, and the area under the curve of risk
against coverage: the mean error of the surest pixels, over all shares of them that may be kept. By
the entropy of a single view, and by entropy and spread of 8 views.

What: a network is trained on 5 annotated images; then 5 more, of 35, are those that it ranks first,
or are drawn at random, three times. Scored are networks trained on all 10 of them, on 10 others. Of
the images of a run, as the split divides them, one or two choose the best step and one is left out.
Runs are kept in `runs/uncertainty` and not repeated.
"""

from pathlib import Path

import numpy as np

from benchmarks.nuclei import read_nuclei
from benchmarks.recipes import of_nuclei
from benchmarks.side_by_side import rounded
from unet_jax import cell_settings, find_cells, load, predict_tiled, predict_with_uncertainty
from unet_jax.checkpoint.cell_settings import is_tuned
from unet_jax.evaluation.instance_tuning import tune_instances
from unet_jax.metrics import matching, seg
from unet_jax.metrics.scores import em_errors
from unet_jax.run.fit import fit

_BEGUN, _MORE, _DRAWS = 5, 5, 3  # images, and draws
_STEPS = 2000


def rows(quick):
    """The curves first, then a row for each network."""
    yield from _curves(quick)
    place = Path("runs", "uncertainty_quick" if quick else "uncertainty")
    everything = sorted(read_nuclei("dsb2018"), key=lambda example: example.name)
    pool, test = everything[_BEGUN:40], everything[-10:]
    names = [example.name for example in everything[:_BEGUN]]
    begun = _trained(place / "begun", names, quick)
    yield {"images": f"{_BEGUN}"} | _scores(begun, test)
    if quick:
        pool = pool[:6]
    model = load(begun)
    sure = [predict_with_uncertainty(model, e.image)[1][..., 0].mean() for e in pool]
    order = np.argsort(sure)[::-1]
    chosen = {f"{_BEGUN} and {_MORE} that it ranks first": order[:_MORE]}
    for draw in range(1 if quick else _DRAWS):
        drawn = np.random.default_rng(draw).choice(len(pool), _MORE, replace=False)
        chosen[f"{_BEGUN} and {_MORE} at random, draw {draw}"] = drawn
    for words, indices in chosen.items():
        more = [pool[index].name for index in indices]
        workdir = place / words.replace(" ", "_").replace(",", "")
        yield {"images": words} | _scores(_trained(workdir, names + more, quick), test)


def _curves(quick):
    """By each measure of uncertainty."""
    model = load("nuclei")
    unsure = {"entropy of one view": [], "entropy of 8 views": [], "spread of 8 views": []}
    wrong_of_one, wrong = [], []
    images = [e for e in read_nuclei("dsb2018") if _is_bright(e)]
    for example in images[: 2 if quick else None]:
        one = predict_tiled(model, example.image)
        mean, uncertainty = predict_with_uncertainty(model, example.image)
        entropy = -(one * np.log2(np.maximum(one, 1e-30))).sum(-1)
        arrays = entropy, uncertainty[..., 0], uncertainty[..., 1]
        for values, array in zip(unsure.values(), arrays, strict=True):
            values.append(array.ravel())
        wrong_of_one.append((one.argmax(-1) != example.labels).ravel())
        wrong.append((mean.argmax(-1) != example.labels).ravel())
    for name, values in unsure.items():
        is_wrong = np.concatenate(wrong_of_one if "one" in name else wrong)
        is_wrong = is_wrong[np.argsort(np.concatenate(values), kind="stable")]
        risk = np.cumsum(is_wrong) / np.arange(1, is_wrong.size + 1)
        least_sure = is_wrong[-(is_wrong.size // 10) :].sum() / is_wrong.sum()
        yield {
            "uncertainty": name,
            "pixels wrong": rounded(is_wrong.mean()),
            "of them in the least sure 10 %": rounded(least_sure),
            "area under risk-coverage": rounded(risk.mean()),
        }


def _is_bright(example):
    """Fluorescence: nuclei brighter than what is around."""
    cell, grey = example.labels > 0, example.image
    return grey[cell].mean() > grey[~cell].mean()


def _trained(workdir, names, quick):
    """The folder of a run on the images of these names."""
    config = of_nuclei(workdir / "data", 40)
    for kind in ("images", "masks"):
        for file in (workdir / "data" / kind).iterdir():
            if file.stem not in names:
                file.unlink()
    config.data.validation_fraction, config.data.test_fraction = 0.2, 0.01
    config.train.steps = config.train.validate_every = 4 if quick else _STEPS
    if quick:
        config.model.width, config.optimiser.warmup_steps = 2, 1
    fit(config, workdir / "run")
    if not is_tuned(workdir / "run"):
        tune_instances(workdir / "run")
    return workdir / "run"


def _scores(workdir, test):
    model, settings = load(workdir), cell_settings(workdir)
    cell = [1 - predict_tiled(model, e.image)[..., 0] for e in test]
    found = [find_cells(probability, settings) for probability in cell]
    references = [example.instances for example in test]
    at_half = matching(references, found)[0]
    return {
        "seg": rounded(seg(references, found).value),
        "pq": rounded(at_half.panoptic_quality),
        "f1_50": rounded(at_half.f1),
        "pixel_error": rounded(em_errors(test, cell)["pixel_error"].value),
    }
