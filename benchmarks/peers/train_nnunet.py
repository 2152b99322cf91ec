"""nnU-Net v2, its 2-D configuration: python train_nnunet.py PLACE SECONDS."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import tifffile
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

PLACE, SECONDS = Path(sys.argv[1]), float(sys.argv[2])
_NAME = "Dataset001_peers"
_EPOCHS = 10  # after each, the learning rate falls


def write():
    """The images in nnU-Net's own layout."""
    raw = PLACE / "raw" / _NAME
    names = {}
    for split in ("train", "validation"):
        files = sorted(PLACE.glob(f"{split}_*_image.npy"))
        names[split] = [file.name.removesuffix("_image.npy") for file in files]
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for name in names["train"] + names["validation"]:
        tifffile.imwrite(
            raw / "imagesTr" / f"{name}_0000.tif", np.load(PLACE / f"{name}_image.npy")
        )
        tifffile.imwrite(raw / "labelsTr" / f"{name}.tif", np.load(PLACE / f"{name}_labels.npy"))
    dataset = {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "cell": 1},
        "numTraining": len(names["train"] + names["validation"]),
        "file_ending": ".tif",
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    extract_fingerprints([1], num_processes=1)
    plan_experiments([1])
    preprocess([1], configurations=["2d"], num_processes=[1])
    split = [{"train": names["train"], "val": names["validation"]}]
    folder = PLACE / "preprocessed" / _NAME
    (folder / "splits_final.json").write_text(json.dumps(split))
    return folder


def trainer(folder, epochs, iterations):
    """That of nnU-Net, for fewer steps than its 250,000."""
    made = nnUNetTrainer(
        load_json(folder / "nnUNetPlans.json") | {"continue_training": False},
        "2d",
        0,
        load_json(folder / "dataset.json"),
        device=torch.device("cpu"),
    )
    made.num_epochs, made.num_iterations_per_epoch = epochs, iterations
    made.num_val_iterations_per_epoch = 1
    made.disable_checkpointing = True
    return made


def main():
    """Trains, and predicts the validation and test images."""
    torch.manual_seed(0)
    folder = write()
    os.environ["nnUNet_n_proc_DA"] = "0"  # in the one process whose time is counted
    first = trainer(folder, 1, 3)
    began = time.process_time()
    first.run_training()
    each = (time.process_time() - began) / 4
    epochs = max(1, min(_EPOCHS, int(SECONDS / each / 2)))
    iterations = max(1, round(SECONDS / each / epochs) - 1)  # and one of validation
    made = trainer(folder, epochs, iterations)
    began = time.process_time()
    made.run_training()
    seconds = time.process_time() - began
    made.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.manual_initialization(
        made.network,
        made.plans_manager,
        made.configuration_manager,
        [made.network.state_dict()],
        made.dataset_json,
        "nnUNetTrainer",
        made.inference_allowed_mirroring_axes,
    )
    for split in ("validation", "test"):
        for number, file in enumerate(sorted(PLACE.glob(f"{split}_*_image.npy"))):
            image = np.load(file).astype(np.float32)[None, None]
            spacing = {"spacing": [999, 1, 1]}
            _, probabilities = predictor.predict_single_npy_array(
                image, spacing, None, None, save_or_return_probabilities=True
            )
            np.save(PLACE / f"{split}_{number:03}_probability.npy", probabilities[1, 0])
    batch, patch = made.configuration_manager.batch_size, made.configuration_manager.patch_size
    did = f"{epochs * iterations} steps of {batch} patches of {patch[0]} x {patch[1]}"
    print(json.dumps({"did": did, "seconds": round(seconds)}))


if __name__ == "__main__":
    main()
