"""The command `unet-jax`, also `python -m unet_jax`: takes a program's name and its flags."""

import sys

from unet_jax import command_line

_HELP = """\
usage: unet-jax PROGRAM --FLAG=VALUE ...

    unet-jax train     trains a U-Net on images and their masks
    unet-jax eval      scores it on images that it has not seen
    unet-jax predict   segments images
    unet-jax export    exports it for other programs

unet-jax PROGRAM --help explains its flags."""


def main() -> None:
    """Runs the program that the first argument names, and exits the process."""
    sys.argv[0] = "unet-jax"
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_HELP)
    elif name in ("train", "eval", "predict", "export"):
        sys.argv = [f"unet-jax {name}", *arguments]
        command_line.start(name)
    else:
        names = "train, eval, predict and export"
        command_line.say(f"there is no program {name!r}; the programs are {names}.")
        sys.exit(2)


if __name__ == "__main__":
    main()
