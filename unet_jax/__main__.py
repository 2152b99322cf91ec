"""The command `unet-jax`, also `python -m unet_jax`: takes a program's name and its flags."""

import sys

from unet_jax import command_line

_PROGRAMS = {
    "train": "trains a U-Net on images and their masks",
    "eval": "scores it on images that it has not seen",
    "predict": "segments images",
    "export": "exports it for other programs",
}


def main() -> None:
    """Runs the program that the first argument names, and exits the process."""
    sys.argv[0] = "unet-jax"
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: unet-jax PROGRAM --FLAG=VALUE ...\n")
        for program, does in _PROGRAMS.items():
            print(f"    unet-jax {program:10}{does}")
        print("\nunet-jax PROGRAM --help explains its flags.")
    elif name in _PROGRAMS:
        sys.argv = [f"unet-jax {name}", *arguments]
        command_line.start(name)
    else:
        programs = ", ".join(_PROGRAMS)
        command_line.say(f"there is no program {name!r}; the programs are {programs}.")
        sys.exit(2)


if __name__ == "__main__":
    main()
