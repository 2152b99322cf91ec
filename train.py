"""`unet-jax train` of this folder: python train.py --help"""

from unet_jax import command_line

if __name__ == "__main__":
    command_line.start("train")
