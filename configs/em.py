"""The paper's experiment on electron microscopy (Sect. 4): the ISBI 2012 stack.

    python train.py --config=configs/em.py --workdir=runs/em
    python eval.py --checkpoint=runs/em

For a GPU, on which it has not been measured yet. On two CPU cores a step takes 5.5 seconds, all of
them two and a half days.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.width = 64  # Fig. 1: channels of the first level
    config.model.depth = 5  # Fig. 1: levels
    config.model.classes = 2  # Sect. 4: membrane and cell
    config.model.dropout_rate = 0.5  # Sect. 3.1: at the end of the contracting path
    config.model.dtype = "float32"
    config.class_names = ("membrane", "cell")

    config.data = ConfigDict()
    config.data.source = "isbi2012"
    config.data.scale = 1.0  # of what the network sees; 0.5 halves the resolution
    # The test labels are hidden, so the 30 annotated slices are divided: first, last + 1.
    config.data.train = (0, 22)
    config.data.validation = (22, 25)  # chooses the best step
    config.data.test = (25, 30)  # opened by eval.py only

    config.weight_map = ConfigDict()
    config.weight_map.w0 = 10.0  # Sect. 3
    config.weight_map.sigma = 5.0  # Sect. 3, pixels

    config.augmentation = ConfigDict()  # Sect. 3.1; 0 switches a part off
    config.augmentation.elastic_pixels = 10.0  # Sect. 3.1, at the nodes of the 3x3 grid
    config.augmentation.rotation_degrees = 180.0  # any angle
    config.augmentation.shift = 1.0  # the tile's centre is anywhere in the image
    config.augmentation.mirror_probability = 0.5
    config.augmentation.contrast_std = 0.1
    config.augmentation.brightness_std = 0.1

    config.optimiser = ConfigDict()
    config.optimiser.momentum = 0.99  # Sect. 3
    # From 0.9 on, rising over 2000 steps, the network leaves the first plateau far sooner.
    config.optimiser.initial_momentum = 0.9
    config.optimiser.momentum_warmup_steps = 2000
    config.optimiser.peak_learning_rate = 2e-3  # the paper gives none
    config.optimiser.warmup_steps = 100

    config.train = ConfigDict()
    config.train.seed = 0
    config.train.steps = 40_000
    config.train.tile_side = 572  # Fig. 1, pixels of the input
    config.train.batch_size = 1  # Sect. 3: large tiles rather than a large batch
    config.train.validate_every = 500  # steps
    # Fine-tuning: the --workdir of a run whose best step to start from; empty = random (Sect. 3).
    # All layers are taken over but the first one for another number of channels, and the last one
    # for another number of classes. Width and depth have to be those of that run.
    config.train.start_from = ""
    config.train.freeze_contracting_path = False  # whether only the expanding path is trained
    return config
