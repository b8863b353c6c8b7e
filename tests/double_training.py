"""train.py in float64, for tests that start it on two processes: `-m double_training RECIPE --flag value …`."""

import torch
from accelerate.utils import set_seed

from m3dec.examples import train
from m3dec.examples.training import state

build_model, normalized = state.build_model, train.normalized


def double_model(*arguments):
    set_seed(0)  # the same random weights whatever was drawn before
    model, processor = build_model(*arguments)
    return model.double(), processor


def double_batch(batch, image_processor):
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in normalized(batch, image_processor).items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    state.build_model, train.normalized = double_model, double_batch
    train.main()
