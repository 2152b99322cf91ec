"""`unet-jax eval` of this folder: python eval.py --help"""

from unet_jax import command_line

if __name__ == "__main__":
    command_line.start("eval")
