"""Runs the benchmarks: python -m benchmarks [name ...] [--out=FOLDER] [--quick].

Each is a module of this folder whose docstring says what it measures, beside what. The contestants
take turns in one process, so that a busy machine slows all of them.
"""

import argparse
import importlib
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


def main():
    """Prints each benchmark's rows as a table, and writes them as JSON where --out says so."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help=", ".join(NAMES) + "; all of them by default")
    parser.add_argument("--out", type=Path, help="folder for NAME.json")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    arguments = parser.parse_args()
    for name in set(arguments.name) - set(NAMES):
        parser.error(f"there is no benchmark {name}, only {', '.join(NAMES)}")
    for name in arguments.name or NAMES:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        print(f"\n{name}: {benchmark.__doc__.splitlines()[0]}\n", flush=True)
        rows = []
        for row in benchmark.rows(quick=arguments.quick):
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
