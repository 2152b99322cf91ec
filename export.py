"""`unet-jax export` of this folder: python export.py --help"""

from unet_jax import command_line

if __name__ == "__main__":
    command_line.start("export")
