"""The paper's experiment on glioblastoma cells (Sect. 4): PhC-C2DH-U373, as `dic_hela.py`.

    python train.py --config=configs/phc_u373.py --workdir=runs/u373_01
    python eval.py --checkpoint=runs/u373_01 --tune
    python eval.py --checkpoint=runs/u373_01

and the other way round with --config.data.train_sequence=02 --config.data.test_sequence=01. It has
not been run yet.
"""

from configs import dic_hela


def get_config():
    config = dic_hela.get_config()
    config.data.dataset = "PhC-C2DH-U373"
    config.data.scale = 0.5
    config.data.partly_annotated = ("all",)  # Sect. 4: 35 partially annotated images
    return config
