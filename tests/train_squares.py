"""A training of test_train_model.py as a program, for torchrun: train_squares.py LOGS IMAGES_PER_GPU EPOCHS."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import torch
from helpers import train_squares, untrained

import runtime

if __name__ == "__main__":
    torch.set_num_threads(1)
    logs, images, epochs = sys.argv[1:]
    model = untrained(logs, IMAGES_PER_GPU=int(images), TRAIN_BN=False, WARMUP_STEPS=0, VALIDATION_STEPS=None)
    train_squares(model, int(epochs))
    runtime.close_distributed()
