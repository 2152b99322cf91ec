"""`unet-jax predict` of this folder: python predict.py --help"""

from unet_jax import command_line

if __name__ == "__main__":
    command_line.start("predict")
