import base64
import copy
import functools
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import pytest
from scipy import ndimage

from configs import dic_hela, em
from unet_jax.configuration import read_configuration
from unet_jax.evaluation.report.cell_examples import cell_examples
from unet_jax.evaluation.report.layout import CELLS
from unet_jax.evaluation.report.page import save_report
from unet_jax.evaluation.report.pictures import Picture
from unet_jax.evaluation.report.words import left_out_words
from unet_jax.evaluation.report.zooms import worst_windows
from unet_jax.evaluation.result import Evaluation
from unet_jax.evaluation.scoring import FoldScores, ImageScores, Scores, measure
from unet_jax.example import IGNORED, Example
from unet_jax.instances import InstanceSettings
from unet_jax.metrics import OVERLAPS, THRESHOLDS, Matching, Score, SegScore
from unet_jax.metrics.scores import ClassScores
from unet_jax.network import UNet
from unet_jax.run_record import Training
from unet_jax.sources import Synthetic

EM_METRICS = (
    "pixel_error",
    "rand_error",
    "warping_error",
    "warping_error_2016",
    "v_rand",
    "v_info",
)
VERSIONS = {"unet-jax": "0.1.0", "jax": "0.10.2", "python": "3.11.7", "device": "cpu, 2 CPU cores"}


def picture(name, height, width, seed=0):
    """Square cells between lines of membrane, one of them split and two merged."""
    cells = np.zeros((height, width), bool)
    cells[:, :] = (np.indices((height, width)) % 20 > 2).all(0)
    numbers = ndimage.label(cells)[0].astype(np.int32)
    split, merge = np.zeros((2, height, width), bool)
    split[10, 3:20] = merge[20:23, 30] = True
    noise = np.random.default_rng(seed).uniform(-0.2, 0.2, (height, width))
    probability = np.where((cells & ~split) | merge, 0.8, 0.2) + noise
    found = ndimage.label(probability > 0.5)[0].astype(np.int32)
    return Picture(
        name=name,
        image=(100 * cells + 30 * noise).astype(np.float32),
        labels=cells.astype(np.int32),
        cell=probability.astype(np.float32),
        found=(probability > 0.5).astype(np.int32),
        split=split,
        merge=merge,
        true_cells=numbers,
        found_cells=found,
    )


ERRORS = {"missed": 1, "false": 2, "split": 0, "merged": 1}


def curve(value, threshold):
    values = tuple(min(value + abs(t - threshold), 1.0) for t in THRESHOLDS)
    return Score(value, threshold, THRESHOLDS, values)


def scores(shift):
    em = {
        metric: curve(0.0123 * (k + 1) + shift, THRESHOLDS[3 + k])
        for k, metric in enumerate(EM_METRICS)
    }
    overlaps = {"membrane": 0.7111 + shift, "cell": 0.9222 + shift}
    dice = {"membrane": 0.8311 + shift, "cell": 0.9595 + shift}
    confusion = np.array([[30, 10], [0, 60]])
    classes = ClassScores(overlaps, 0.8333 + shift, dice, 0.8953 + shift, confusion)
    matching = [Matching(overlap, 2, 1, 1, 1.8) for overlap in OVERLAPS]
    return Scores(em, SegScore(0.6543, (0.0, 0.9, 0.95)), matching, classes)


def image_scores(name, k):
    em = {metric: 0.0456 + 0.01 * k for metric in EM_METRICS}
    cells = dict.fromkeys(CELLS, 0.7 - 0.01 * k)
    classes = {"mean_iou": 0.8 - 0.01 * k, "mean_dice": 0.9 - 0.01 * k}
    return ImageScores(name, em | cells | classes, 12, 13, ERRORS)


def em_result(names):
    log = [
        {"step": s, "seconds": s, "loss": 1 / s, "gradient_norm": 1, "learning_rate": 0.1}
        for s in range(1, 200)
    ]
    log.append({"step": 199, "validation": {"loss": 0.1, "pixel_error": 0.2, "rand_error": 0.3}})
    return Evaluation(
        checkpoint=Path("runs/em"),
        report=Path("report.html"),
        command="python eval.py --checkpoint=runs/em",
        step=39500,
        data="images that the run left out",
        split="held_out",
        averaging="symmetries",
        scores={"none": scores(0.02), "rotations": scores(0.01), "symmetries": scores(0.0)},
        prediction_seconds={"none": 12.34, "rotations": 12.34, "symmetries": 12.34},
        annotated=1.0,
        sparse=False,
        single_cells=False,
        duplicates=[],
        without_cells=0,
        with_one_cell=0,
        images=[image_scores(name, k) for k, name in enumerate(names)],
        folds=[],
        baselines={
            name: {"pixel_error": curve(0.1105, 0.0), "rand_error": curve(value, 0.0)}
            for name, value in (("one class everywhere", 0.9073), ("blurred grey value", 0.4021))
        },
        instances=InstanceSettings(0.5, 20, 0.0, 20, 1.0),
        tuned=False,
        tile_side=444,
        training=Training(
            command="python train.py --config=configs/em.py --workdir=runs/em",
            config=read_configuration(em.get_config()),
            class_weights=[3.0, 0.6],
            splits={"train": ["a", "b"], "validation": ["c"], "test": list(names)},
            data={"a": "0123456789abcdef" * 4},
            images={},
            started_from=None,
            fold=0,
            folds=1,
            versions=VERSIONS,
        ),
        log=log,
        versions=VERSIONS,
    )


def cell_result(names):
    result = em_result(names)
    training = replace(result.training, config=read_configuration(dic_hela.get_config()))
    settings = replace(result.instances, neck_ratio=0.75)
    return replace(
        result,
        training=training,
        single_cells=True,
        log=[],
        instances=settings,
        tuned=True,
    )


def with_config(result, **parts):
    config = replace(result.training.config, **parts)
    return replace(result, training=replace(result.training, config=config))


class Page(HTMLParser):
    """The text of a page, its tags, and whether they are nested as they should be."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(html)
        self.close()
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("b", "code", "a", "span"):
            self.text += " "  # a box of its own
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]


def saved(tmp_path, result, pictures):
    file = tmp_path / "report.html"
    save_report(replace(result, report=file), pictures, {})
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]
    html = file.read_text(encoding="utf-8")
    page = Page(html)
    check_self_contained(html, page)
    return page


def check_self_contained(html, page):
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attributes.items():
            if tag == "a" and name == "href":
                assert value.startswith(("https://doi.org/", "https://arxiv.org/"))
            else:
                assert "http:" not in value and "https:" not in value
    assert "url(" not in html and "@import" not in html
    assert page.images()
    for image in page.images():
        assert image["alt"]
        kind, content = re.fullmatch(r"data:image/(.+);base64,(.+)", image["src"]).groups()
        content = base64.b64decode(content, validate=True)
        if kind == "svg+xml":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            decode = {"png": imagecodecs.png_decode, "jpeg": imagecodecs.jpeg_decode}[kind]
            assert 0 < max(decode(content).shape) <= 512


def test_em_report_has_all_figures(tmp_path):
    names = [f"slice {k}" for k in range(7)]
    result = em_result(names)
    page = saved(tmp_path, result, [picture(name, 130, 150) for name in names])
    for figures in result.scores.values():
        for metric in EM_METRICS:
            assert f"{figures.em[metric].value:.4f} threshold" in page.text
        for value in figures.classes.intersection_over_union.values():
            assert f"{value:.4f}" in page.text
    # From 0.0246 + 0.02 and 0.0615 + 0.02: the averages are below, which is better for an error.
    assert page.text.count("▼ 0.0200 better") == 4
    assert page.text.count("▼ 0.0200 worse") == 6  # V_rand, V_info, IoU and Dice of two classes
    assert page.text.count("= the same") == 2  # SEG
    for value in ("0.9073", "0.4021", "0.000353", "0.0382", "0.0611", "0.9728", "0.9866", "0.0021"):
        assert value in page.text
    assert "not comparable" in page.text and "would score 0" in page.text
    assert "slice 0 – the best" in page.text and "slice 6 – the worst" in page.text
    assert "slice 3 – " not in page.text
    assert "Drop-out" in page.text and "arXiv:1505.04597" in page.text
    assert "  " not in page.text and " ." not in page.text and " ," not in page.text
    assert "config.augmentation.elastic_pixels = 10.0" in page.text


def test_paper_is_comparable_on_its_test_stack_only(tmp_path):
    result = replace(em_result(["slice 0"]), split="test")
    text = saved(tmp_path, result, [picture("slice 0", 60, 60)]).text
    assert "on this test stack" in text and "not comparable" not in text
    text = saved(tmp_path, replace(result, split="images"), [picture("slice 0", 60, 60)]).text
    assert "the paper's" not in text and "1 other annotated image." in text
    result = with_config(replace(result, split="held_out"), data=Synthetic())
    text = saved(tmp_path, result, [picture("slice 0", 60, 60)]).text
    assert "the paper's" not in text and "0.0382" not in text


def test_cell_report_leads_with_seg_and_colours_cells(tmp_path):
    names = ["02/002", "02/006"]
    page = saved(
        tmp_path, cell_result(names), [picture(names[0], 60, 80), picture(names[1], 61, 47)]
    )
    assert page.text.index("SEG") < page.text.index("Rand error")
    assert "finds 2 of the 3 annotated cells" in page.text
    assert "0.7756" in page.text and "0.0382" not in page.text
    assert (
        "Every metric except SEG, AP, F1, panoptic quality, precision, recall, IoU and Dice"
        in page.text
    )
    assert "Maška, M. et al. (2023)" in page.text and "Cardona" not in page.text
    assert "narrower than 0.75 times the smaller one" in page.text
    assert sum(image["alt"].startswith("found cells of") for image in page.images()) == 2
    assert not any(i["alt"].endswith("against the training step") for i in page.images())


def test_missing_seg_is_a_dash_with_its_reason(tmp_path):
    names = ["a", "b"]
    result = cell_result(names)
    result.images[0].values["seg"] = None
    pictures = [picture(name, 60, 80) for name in names]
    text = saved(tmp_path, result, pictures).text
    assert "SEG – (no cell annotated)" in text
    without = {
        name: replace(figures, seg=None, matching=None) for name, figures in result.scores.items()
    }
    result = replace(result, scores=without)
    text = saved(tmp_path, result, pictures).text
    assert "SEG is not defined: no cell is annotated in these images." in text
    assert "– no cell is annotated" in text


def row(rand_error=0.1, v_info=0.9, found_cells=3):
    return ImageScores("a", {"rand_error": rand_error, "v_info": v_info}, 3, found_cells, ERRORS)


ONE_CELL = row(v_info=None)


def empty(found):
    return row(None, None, found)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([row(), row()], ""),
        (
            [row(), empty(0)],
            "1 of 2 images has no annotated cell and is left out of Rand error, V_rand and V_info; "
            "the network finds 0 cells there.",
        ),
        (
            [empty(0), ONE_CELL, empty(5), row(), empty(2)],
            "3 of 5 images have no annotated cell and are left out of Rand error, V_rand and "
            "V_info; the network finds 7 cells in 2 of them. "
            "1 of 5 images has only one annotated cell and is left out of V_info.",
        ),
        ([ONE_CELL], "1 of 1 image has only one annotated cell and is left out of V_info."),
        (
            [empty(1), empty(0)],
            "No cell is annotated in these 2 images, so only IoU and Dice are defined; the network "
            "finds 1 cell in 1 of them.",
        ),
        (
            [empty(4)],
            "No cell is annotated in this image, so only IoU and Dice are defined; the network "
            "finds 4 cells there.",
        ),
    ],
)
def test_images_left_out_in_words(images, words):
    assert left_out_words(images) == words


def test_images_without_a_cell_come_after_the_worst(tmp_path):
    names = [f"slice {k}" for k in range(9)]
    result = replace(em_result(names), without_cells=3)
    for k in (1, 4, 6):
        undefined = dict.fromkeys(("rand_error", "v_rand", "v_info", *CELLS))
        values = result.images[k].values | undefined
        result.images[k] = ImageScores(names[k], values, 0, k, ERRORS)
    text = saved(tmp_path, result, [picture(name, 60, 60) for name in names]).text
    assert "3 of 9 images have no annotated cell" in text and "11 cells in 3 of them" in text
    assert "Images without an annotated cell (3) were left out" in text
    shown = text.split("Best and worst images")[1].split("Where cells are split")[0]
    order = ["slice 0", "slice 2", "slice 5", "slice 7", "slice 8", "slice 6", "slice 4"]
    assert re.findall(r"slice \d", shown) == order
    assert "Ranked by Rand error; then images without an annotated cell" in shown
    assert "slice 8 – the worst" in shown
    assert (
        "Rand error –, warping error 0.1056, pixel error 0.1056; 0 cells annotated, 6 found"
        in shown
    )


def test_folds_with_mean_and_spread(tmp_path):
    names = list("abcd")
    values = {**dict.fromkeys(EM_METRICS, 0.2), **dict.fromkeys(CELLS), "mean_iou": 0.5}
    folds = [FoldScores(["a", "b"], values), FoldScores(["c", "d"], values | {"rand_error": 0.4})]
    result = replace(em_result(names), split="validation", step=[30, 40], folds=folds)
    page = saved(tmp_path, result, [picture(name, 60, 60) for name in names])
    table = page.text.split("Cross-validation")[1].split("How the scores")[0]
    assert "mean 0.3000 0.2000" in table
    assert f"standard deviation {np.std([0.2, 0.4], ddof=1):.4f} 0.0000" in table
    assert table.count("–") >= 4
    assert "In a 2-fold cross-validation" in page.text and "steps 30 and 40" in page.text


def test_one_picture_without_split_merge_log_or_labels(tmp_path):
    name = "bad"
    one = picture(name, 50, 40)
    nothing = np.zeros((50, 40), bool)
    zeros = np.zeros((50, 40), np.int32)
    one = one._replace(
        image=np.zeros((50, 40, 2), np.uint16),
        labels=np.full((50, 40), IGNORED, np.int32),
        split=nothing,
        merge=nothing,
        true_cells=zeros,
        found_cells=zeros,
    )
    for result in (em_result([name]), cell_result([name])):
        result = replace(
            result,
            training=replace(result.training, command=None),
            log=[],
            scores={"symmetries": result.scores["symmetries"]},
            prediction_seconds={"symmetries": 12.34},
        )
        text = saved(tmp_path, result, [one]).text
        assert "Nowhere: at the threshold" in text
        assert "was not recorded" in text and "Median, dashed" not in text


def test_each_class_has_its_colour_and_row(tmp_path):
    result = with_config(
        em_result(["a"]),
        model=UNet(classes=3),
        class_names=("background", "cell", "nucleus"),
        class_colours=("black", "#abcdef", "white"),
    )
    confusion = np.array([[3000, 0, 0], [100, 300, 0], [0, 0, 0]])
    for name, figures in result.scores.items():
        classes = figures.classes._replace(
            intersection_over_union={"background": 0.8, "cell": 0.6},
            dice={"background": 0.9, "cell": 0.75},
            confusion=confusion,
        )
        result.scores[name] = replace(figures, classes=classes)
    one = picture("a", 60, 60)
    labels = one.labels.copy()
    labels[:30] *= 2
    found = np.ones_like(labels)
    page = saved(tmp_path, result, [one._replace(labels=labels, found=found)])
    text = page.text
    assert "the right one for 97.1 % of the annotated pixels" in text  # 3300 of 3400
    assert "of the 3 classes is 0.8333 (1 = perfect)" in text
    assert "background 3,000 100.0 % 0.0 % 0.0 % cell 400 25.0 % 75.0 % 0.0 % nucleus 0 –" in text
    assert "background, cell, nucleus. Errors: red: not the true class" in text
    assert "all classes except background count as cell" in text
    (drawn,) = [i["src"] for i in page.images() if i["alt"] == "most probable class of a"]
    drawn = imagecodecs.png_decode(base64.b64decode(drawn.split(",")[1]))
    assert (drawn == (0xAB, 0xCD, 0xEF)).all()
    assert "IoU of nucleus ↑ higher is better – occurs neither in truth nor in prediction" in text


def test_sparse_masks_are_scored_without_cells(tmp_path):
    names = ["a", "b"]
    result = replace(em_result(names), annotated=0.0523, sparse=True)
    pictures = [picture(name, 60, 60) for name in names]
    text = saved(tmp_path, result, pictures).text
    assert "5.2 % of the pixels of these images are annotated" in text
    assert "for 90.0 % of the annotated pixels" in text
    assert "Ranked by mean IoU" in text and "Mean IoU 0.8000" in text
    scores = text.split("Scores metric")[1].split("All images")[0]
    for absent in ("Rand", "rand", "V_info", "SEG ↑", "warping"):
        assert absent not in scores
    assert "split or merged" not in text and "cells annotated, 13 found" not in text
    result = replace(cell_result(names), annotated=0.1)  # few cells, but whole ones
    assert "Sparse annotation" not in saved(tmp_path, result, pictures).text


def test_names_are_escaped_and_large_images_shrunk(tmp_path):
    name = '<u>"x" & y</u> $_{ 図.tif'
    result = replace(em_result([name, "plain"]), checkpoint=Path("runs/<script>"))
    page = saved(tmp_path, result, [picture(name, 700, 1100), picture("plain", 30, 40)])
    assert name in page.text and "runs/<script>" in page.text
    assert "u" not in [tag for tag, _ in page.tags]


def test_a_failure_leaves_the_former_report(tmp_path):
    file = tmp_path / "report.html"
    file.write_text("before")
    with pytest.raises(IndexError):
        save_report(replace(em_result(["a"]), report=file), [], {})
    assert file.read_text() == "before"


def test_same_result_same_file(tmp_path):
    result, pictures = em_result(["a", "b"]), [picture(name, 60, 60) for name in "ab"]
    save_report(replace(copy.deepcopy(result), report=tmp_path / "1.html"), pictures, {})
    save_report(replace(result, report=tmp_path / "2.html"), pictures, {})
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_worst_windows_hold_the_most_errors_and_do_not_overlap():
    errors = [np.zeros((300, 200), bool), np.zeros((50, 300), bool)]
    errors[0][40:60, 100] = True
    errors[0][299, 199] = True
    errors[1][:5, 10:18] = True
    windows = list(worst_windows(errors))
    assert [index for index, _, _ in windows] == [1, 0, 0]
    for index, rows, columns in windows:
        assert rows.stop - rows.start == min(96, errors[index].shape[0])
        assert columns.stop - columns.start == 96
    seen = [np.zeros(e.shape, int) for e in errors]
    for index, rows, columns in windows:
        seen[index][rows, columns] += 1
    assert max(s.max() for s in seen) == 1
    assert all(s[e].all() for s, e in zip(seen, errors, strict=True))


def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.mark.skipif(browser() is None, reason="there is no chromium or chrome")
def test_browser_shows_it_wide_and_narrow_without_complaint(tmp_path):
    names = ["a_name_without_any_space_" * 6, "b"]
    values = dict.fromkeys((*EM_METRICS, *CELLS), 0.5)
    result = replace(
        em_result(names),
        report=tmp_path / "report.html",
        folds=[FoldScores([name], values) for name in names],
        step=[1, 2],
        command="python " + "x" * 300,
    )
    save_report(result, [picture(name, 90, 120) for name in names], {})
    # A headless window cannot be made as narrow as a telephone, but a frame can.
    (tmp_path / "frames.html").write_text(
        """<iframe src="report.html" style="width: 1400px"></iframe>
        <iframe src="report.html" style="width: 390px"></iframe>
        <script>
          addEventListener("load", () => {
            for (const frame of document.querySelectorAll("iframe")) {
              const page = frame.contentDocument;
              page.querySelectorAll("details").forEach((details) => { details.open = true; });
              const shown = [...page.images].filter((image) => image.naturalWidth > 0).length;
              const sizes = [page.documentElement.scrollWidth, frame.contentWindow.innerWidth];
              console.log("measured", ...sizes, shown, page.images.length);
            }
          });
        </script>"""
    )

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            process = subprocess.run(
                [
                    browser(),
                    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
                    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                    *("--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"),
                    *("--enable-logging=stderr", "--dump-dom", "--window-size=1600,1000"),
                    f"http://127.0.0.1:{server.server_port}/frames.html",
                ],
                capture_output=True,
                text=True,
                timeout=60,
            )
        finally:
            server.shutdown()
            thread.join()
    console = re.findall(r"CONSOLE.*?\] \"(.*?)\", source", process.stderr)
    assert len(console) == 2, process.stderr
    for line, width in zip(console, (1400, 390), strict=True):
        scrolled, inner, shown, images = map(int, line.removeprefix("measured ").split())
        assert scrolled <= inner == width
        assert shown == images > 10


def test_the_largest_cells_of_each_kind_of_error_are_shown():
    truth = np.zeros((300, 900), np.int32)
    for number, left in enumerate(range(10, 210, 40), 1):
        truth[10 : 10 + 2 * number + 5, left : left + 20] = number  # the last is the largest
    truth[100:120, 100:160], truth[200:260, 10:800] = 6, 7
    found = np.zeros_like(truth, float)
    found[100:120, 100:125], found[100:120, 135:160] = 1, 1  # 6 is split
    found[210:250, 20:790] = 1
    found[150:160, 400:410] = 1  # nothing is annotated here
    example = Example("a", np.zeros(truth.shape, np.uint8), (truth > 0).astype(np.int32), truth)
    probability = np.stack([1 - found, found], -1).astype(np.float32)
    settings = InstanceSettings(smallest_cell=1)
    images = measure([example], [probability], settings)
    assert images[0].errors.counts() == {"missed": 5, "false": 1, "split": 1, "merged": 0}
    examples = cell_examples(images)
    assert [len(examples[kind]) for kind in ("missed", "false", "split", "merged")] == [3, 1, 1, 0]
    for of_kind in examples.values():
        for shown in of_kind:
            assert [panel.title for panel in shown.panels] == [
                "image",
                "annotated cells",
                "found cells",
            ]
    heights = [size_of(shown.panels[0])[0] for shown in examples["missed"]]
    widths = [size_of(shown.panels[0])[1] for shown in examples["missed"]]
    # Height and width with a margin of 24 or up to the border, enlarged to 192 and a little more.
    times = [-(-192 // 68)] * 3
    assert heights == [(10 + 2 * n + 5 + 24) * t for n, t in zip((5, 4, 3), times, strict=True)]
    assert widths == [68 * t for t in times]
    # What is large is shown smaller.
    huge = measure([example], [np.stack([1 - truth * 0.0, truth * 0.0], -1)], settings)
    assert max(size_of(cell_examples(huge)["missed"][0].panels[1])) <= 384


def size_of(panel):
    _, content = panel.address.split("base64,")
    return imagecodecs.jpeg_decode(base64.b64decode(content)).shape[:2]
