"""Your own images and masks: two folders of TIFF or PNG files, paired by file name.

    python train.py --config=configs/folder.py --workdir=runs/mine \\
        --config.data.images=my/images --config.data.labels=my/masks
    python eval.py --checkpoint=runs/mine

About 45 minutes on two CPU cores. On 50 images of nuclei, masks by "instances", 600 of the 4,000
steps took 7 minutes: pixel error 0.145, Rand error 0.281; blurred grey value 0.152 and 0.442.

Several classes, of masks with 0, 1, 2 and 3 in them:

        --config.data.mask_rule=classes --config.model.classes=4 \\
        --config.class_names="('background', 'nucleus', 'cytoplasm', 'debris')"

Strokes on a few places of each image do, if the rest is ignored. Programs that write 0 where
nothing is drawn, and 1, 2, 3 for the classes, want --config.data.ignore_value=0 and 3 classes.
"""

from ml_collections import ConfigDict

from configs import em_small


def get_config():
    config = em_small.get_config()
    config.class_names = ("background", "cell")  # as many as config.model.classes
    # In pictures, one for each class, such as ("black", "#ff8000"); () = the usual ones.
    config.class_colours = ()

    config.data = ConfigDict()
    config.data.scale = 1.0
    config.data.source = "folder"
    config.data.images = "images"
    config.data.labels = "masks"
    # What the numbers in a mask mean: "binary", 0 and one other such as 255; "classes", the class
    # of each pixel; "instances", 0 = background and n = cell n.
    config.data.mask_rule = "binary"
    # Mask pixels that do not count, such as 255; -1 = there are none. With 0, "classes" begin at 1.
    config.data.ignore_value = -1
    config.data.validation_fraction = 0.15  # of the files: chooses the best step
    config.data.test_fraction = 0.15  # opened by eval.py only
    config.data.split_seed = 0
    return config
