"""Checkpoints: a folder for each step, with everything that prediction and resuming need.

    checkpoints/000400/params/        the network's parameters (Orbax)
    checkpoints/000400/unaveraged/    those to continue from, if the former are averaged
    checkpoints/000400/opt_state/     the optimiser's state (Orbax)
    checkpoints/000400/checkpoint.json   configuration, normalisation, class names, versions, ...
    checkpoints/000400/sha256.json    the manifest: the other files' digests, written last

A step exists if its manifest does, and is read only if its files match the manifest. Nothing in
it is ever executed, and nothing outside its folder is opened.
"""

from unet_jax.checkpoint.integrity import manifest_sha256
from unet_jax.checkpoint.loading import ensemble, load, load_members, restore
from unet_jax.checkpoint.records import best_step, describe
from unet_jax.checkpoint.saving import Saver, save
from unet_jax.checkpoint.steps import remove_unfinished, saved_steps

__all__ = [
    "Saver",
    "best_step",
    "describe",
    "ensemble",
    "load",
    "load_members",
    "manifest_sha256",
    "remove_unfinished",
    "restore",
    "save",
    "saved_steps",
]
