"""Exports a trained U-Net for other programs: as ONNX and as a BioImage Model Zoo package.

    unet-jax export --checkpoint=runs/mine --output=exported

writes NAME.onnx and NAME.zip, which also holds an example image with its result. It needs
additional packages: pip install 'unet-jax[export]'. More examples:

    --image=my/images/a.tif                 use this example, not the first test image
    --name=nuclei --author='Ada Lovelace'   what the model zoo shows
    --licence=CC-BY-4.0
"""

from absl import flags

from unet_jax.command_line import Outcome

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The --workdir of a training run, or nuclei or membranes."
)
_STEP = flags.DEFINE_string("step", "best", "best (by validation), latest, or a step's number.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.")
_IMAGE = flags.DEFINE_string(
    "image",
    None,
    "Image whose middle becomes the example in the package and determines how the package "
    "normalises grey values; default: the first test image of the run.",
)
_NAME = flags.DEFINE_string("name", None, "Name of the model and files; default: unet_CHECKPOINT.")
_AUTHOR = flags.DEFINE_multi_string(
    "author", [], "Author of the model; may be given several times."
)
_LICENCE = flags.DEFINE_string("licence", None, "Licence of the model, such as CC-BY-4.0.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace files with the same names.")
flags.mark_flags_as_required(["checkpoint", "output"])
for _name in ("checkpoint", "output", "image"):
    flags.register_validator(_name, lambda path: path != "", "it must name a file or folder.")


def main() -> Outcome:
    """Does what the flags say."""
    from unet_jax.export.export import export  # loads JAX

    exported = export(
        _CHECKPOINT.value,
        step=_STEP.value,
        output=_OUTPUT.value,
        image=_IMAGE.value,
        name=_NAME.value,
        authors=_AUTHOR.value,
        licence=_LICENCE.value,
        overwrite=_OVERWRITE.value,
    )
    lines = [f"{file}: {size:,} bytes" for file, size in exported.files.items()]
    if exported.scale != 1:
        lines.append(
            f"The network takes images at {exported.scale:g} times their size; resize them first."
        )
    return Outcome("\n".join(lines))
