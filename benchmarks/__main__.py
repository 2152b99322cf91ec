"""Runs the benchmarks: python -m benchmarks [NAME ...] [--out=FOLDER] [--quick].

Each is a module of this folder whose docstring says what it measures, beside what. The contestants
take turns, so that a busy machine slows all of them.
"""

import argparse
import importlib
import inspect
import json
from importlib.metadata import distributions
from pathlib import Path

from unet_jax.provenance import versions

NAMES = (
    "layers",
    "training_step",
    "tile_prediction",
    "prediction",
    "augmentation",
    "weight_map",
    "metrics",
    "checkpoints",
    "start_up",
    "time_to_accuracy",
    "fine_tuning",
)
#: Run when they are named.
ON_REQUEST = (
    *("ceilings", "gpu_compile", "loop", "kernels", "resume", "versions", "host_time"),
    *("volumes", "unread", "recipes", "nuclei", "peers", "uncertainty", "painting", "viewer"),
)


def main():
    """Prints each benchmark's rows as a table, and writes them as JSON where --out says so."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    by_default = f"by default {', '.join(NAMES)}; also {', '.join(ON_REQUEST)}"
    parser.add_argument("name", nargs="*", metavar="NAME", help=by_default)
    parser.add_argument("--out", type=Path, help="folder for NAME.json")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE", help="see training_step, gpu_compile, recipes, peers"
    )
    parser.add_argument("--other", metavar="CHECKOUT", help="of versions and host_time")
    arguments = parser.parse_args()
    for name in set(arguments.name) - {*NAMES, *ON_REQUEST}:
        parser.error(f"there is no benchmark {name}; {by_default}")
    if "versions" in arguments.name and not arguments.other:
        parser.error("versions needs --other")
    for name in arguments.name or NAMES:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        print(f"\n{name}: {benchmark.__doc__.splitlines()[0]}\n", flush=True)
        taken = inspect.signature(benchmark.rows).parameters
        rows = []
        for row in benchmark.rows(**{k: v for k, v in vars(arguments).items() if k in taken}):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                result = {"versions": versions() | _contestants(), "rows": rows}
                text = json.dumps(result, indent=1) + "\n"
                (arguments.out / f"{name}.json").write_text(text)
        print("\n" + table(rows), flush=True)


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table; a column for each key, in the order of their appearance."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *([row.get(key, "") for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _contestants():
    installed = {d.name.lower(): d.version for d in distributions() if d.name}
    return {name: installed[name] for name in ("torch", "monai") if name in installed}


if __name__ == "__main__":
    main()
