"""One stage of what is to be measured on an accelerator, within ten minutes; see README.md.

    python3 stage.py STAGE [--quick] [--out=FOLDER] [--seconds=570] [flags of its first command]

Beside what `pack.sh` has made it unpacks and installs that first; in a checkout it runs as it is.
It needs no package itself.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

_BEGAN = time.monotonic()
_HERE = Path(__file__).resolve().parent

_EM = (
    "python train.py --config=configs/em.py --workdir=RUNS/em --config.train.steps={steps}"
    " --config.train.validate_every={every} --config.model.dtype={dtype}"
)
_EM_SCORES = "python eval.py --checkpoint=RUNS/em --averaging=none --averaging=rotations"
_HELA = (
    "python train.py --config=configs/dic_hela.py --workdir=RUNS/hela"
    " --config.data.train_sequence={} --config.data.test_sequence={}"
)
_HELA_CELLS = "python eval.py --checkpoint=RUNS/hela --tune"
_HELA_SCORES = "python eval.py --checkpoint=RUNS/hela --averaging=none --averaging=symmetries"
# Several processes share the device: none may take all of its memory. In several processes,
# pytest-benchmark warns that it measures nothing, and warnings are errors.
_TESTED = (
    *("layers", "loss", "network", "train_step", "augmentation", "overlap_tile", "rotations"),
    *("tiles", "weight_map", "torch_parity", "fit", "checkpoint", "evaluate", "predict_files"),
    "benchmarks",
)
_TESTS = (
    "XLA_PYTHON_CLIENT_PREALLOCATE=false python -m pytest -q -p no:benchmark -n 12 --dist loadfile "
    + " ".join(f"tests/test_{name}.py" for name in _TESTED)
)
#: The command lines of each stage, and how many seconds each may take.
STAGES = {
    "steps": [
        (90, "python -m benchmarks ceilings --out=RUNS"),
        (120, "python -m benchmarks kernels --out=RUNS"),
        (120, "python -m benchmarks loop --out=RUNS"),
    ],
    "prediction": [
        (280, "python -m benchmarks tile_prediction --out=RUNS"),
        (280, "python -m benchmarks prediction --out=RUNS"),
    ],
    "em": [(400, _EM.format(steps=10_000, every=1000, dtype="bfloat16")), (150, _EM_SCORES)],
    "em_float32": [(400, _EM.format(steps=10_000, every=1000, dtype="float32")), (150, _EM_SCORES)],
    "em_full": [(440, _EM.format(steps=40_000, every=4000, dtype="bfloat16")), (120, _EM_SCORES)],
    "hela_01": [(240, _HELA.format("01", "02")), (120, _HELA_CELLS), (150, _HELA_SCORES)],
    "hela_02": [(240, _HELA.format("02", "01")), (120, _HELA_CELLS), (150, _HELA_SCORES)],
    "tests": [(280, f"JAX_DEFAULT_MATMUL_PRECISION=highest {_TESTS}"), (280, _TESTS)],
    "pytorch": [(560, "python -m benchmarks training_step --out=RUNS")],
    "resume": [(560, "python -m benchmarks resume --out=RUNS")],
    "time_to_accuracy": [(560, "python -m benchmarks time_to_accuracy --out=RUNS")],
}
# What is added to a command line with this word, if quick.
_QUICK = {
    "benchmarks": "--quick",
    "pytest": "-n 0 -k pool",
    "train.py": "--config.model.width=2 --config.model.depth=2 --config.train.tile_side=44"
    " --config.train.steps=20 --config.train.validate_every=10 --config.optimiser.warmup_steps=5",
}
# Results that are brought back; checkpoints and pictures of a report are too large.
_KEPT = (".json", ".jsonl", ".log", ".png")


def prepared() -> tuple[Path, dict[str, str]]:
    """The checkout to run in, and the environment."""
    compiled = Path(tempfile.gettempdir(), "unet_jax_compiled")
    environment = {"JAX_COMPILATION_CACHE_DIR": str(compiled)} | os.environ
    environment |= {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "2", "TQDM_DISABLE": "1"}
    if not (_HERE / "commit").exists():
        return _HERE.parents[1], environment
    commit = (_HERE / "commit").read_text().strip()
    folder = Path(tempfile.gettempdir(), f"unet_jax_{commit}")
    if not (folder / "ready").exists():  # the machine may still be warm from another stage
        for name in ("source", "data"):
            with tarfile.open(_HERE / f"{name}.tar.gz") as archive:
                archive.extractall(folder / name, filter="data")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        wheels = sorted(map(str, _HERE.glob("wheels/*.whl")))
        subprocess.run([*install, "--target", str(folder / "site"), *wheels], check=True)
        (folder / "ready").touch()
    # The checkout comes before its wheel, which is there for the version's number.
    environment["PYTHONPATH"] = f"{folder / 'source'}:{folder / 'site'}"
    environment["UNET_JAX_DATA"] = str(folder / "data")
    return folder / "source", environment


def run(words: list[str], seconds: float, log: Path, checkout: Path, environment) -> str:
    """Runs a command line, which is asked to stop when the time is over; its status and end."""
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            ["env", *words], cwd=checkout, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        for patience, stop in ((seconds, process.terminate), (20, process.kill)):
            try:
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                stop()
        status = process.wait()
    lines = [line[:300] for line in log.read_text(errors="replace").splitlines()[-60:]]
    head = f"--- {' '.join(words)}: status {status}, {time.monotonic() - began:.0f} s"
    return "\n".join([head, *lines])


def reached(log: Path) -> dict:
    """When a run's pixel error first fell below each target, and its last validation."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    scored = [row for row in rows if "validation" in row]
    below: dict[float, dict] = {}
    for row in scored:
        for target in (0.08, 0.06, 0.05, 0.045):
            if row["validation"].get("pixel_error", 1) < target:
                below.setdefault(target, {"step": row["step"], "seconds": row["seconds"]})
    return {"pixel_error_below": below, "last": scored[-1:]}


def main():
    """Runs the stage; STAGE.log and STAGE.tar.gz are in --out after each of its commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--seconds", type=int, default=570)
    arguments, flags = parser.parse_known_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / f"{arguments.stage}.log"
    log.unlink(missing_ok=True)

    def say(text):
        print(text, flush=True)
        with log.open("a") as file:
            file.write(text + "\n")

    checkout, environment = prepared()
    state = "nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,power.draw", "--format=csv"
    if shutil.which(state[0]):
        say(subprocess.run(state, capture_output=True, text=True).stdout)
    with tempfile.TemporaryDirectory() as results:
        for number, (seconds, line) in enumerate(STAGES[arguments.stage]):
            words = line.replace("RUNS", results).split()
            for word in _QUICK.keys() & words if arguments.quick else ():
                words += _QUICK[word].split()
            words[words.index("python")] = sys.executable
            words += [] if number else flags
            seconds = min(seconds, arguments.seconds - (time.monotonic() - _BEGAN))
            if seconds < 10:
                say(f"--- {line}: no time is left")
                continue
            say(run(words, seconds, Path(results, f"{number}.log"), checkout, environment))
            for log_of_run in Path(results).glob("*/log.jsonl") if "train.py" in words else ():
                say(json.dumps(reached(log_of_run)))
            with tarfile.open(arguments.out / f"{arguments.stage}.tar.gz", "w:gz") as archive:
                for path in sorted(Path(results).rglob("*")):
                    if path.suffix in _KEPT and "checkpoints" not in path.parts:
                        archive.add(path, path.relative_to(results))


if __name__ == "__main__":
    main()
