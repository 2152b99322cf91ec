"""What a checkpoint of the paper's network costs: the stall in training, the save, the checks.

The stall is what `Saver.save` takes until training goes on; the save itself lies in the background.
"Loaded" is `restore` of parameters and optimiser state with every digest verified; "verified" is
the share of that.
"""

import tempfile
from pathlib import Path

import jax

from benchmarks.side_by_side import alternate, rounded, summary
from unet_jax import checkpoint
from unet_jax.checkpoint.integrity import verify
from unet_jax.configuration import Configuration
from unet_jax.network import UNet
from unet_jax.optimiser import sgd
from unet_jax.run_record import Record
from unet_jax.training_loop import initial_state


def rows(quick):
    """One row for each of stall, save, load and verification."""
    network, optimiser = UNet(width=4 if quick else 64), sgd()
    state = initial_state(Configuration(model=network), optimiser, channels=1)
    # The momentum is not all zero, which would take no room.
    _, opt_state = optimiser.update(state.params, state.opt_state, state.params)
    state = jax.block_until_ready(state.replace(opt_state=opt_state))
    record = Record(network, channels=1, step=1)
    with tempfile.TemporaryDirectory() as folder, checkpoint.Saver(Path(folder)) as saver:
        workdir = Path(folder)

        def stall():
            saver.save(state, record)

        # In this order: waiting for the stall's save is the rest of it.
        seconds = alternate(
            {
                "stall": stall,
                "save in the background": saver.wait,
                "loaded": lambda: checkpoint.restore(workdir, 1, state),
                "verified": lambda: verify(workdir / "checkpoints" / "000001"),
            },
            rounds=2 if quick else 7,
        )
        held = sum(f.stat().st_size for f in workdir.rglob("*") if f.is_file())
    for name in seconds:
        result = summary(seconds, name, ours="loaded")
        del result["ours_over_it"]
        yield {
            "width": network.width,
            "part": name,
            **result,
            "megabytes": rounded(held / 1e6),
        }
