"""Gradients that make the loss of `sensitivity` the noise over signal at a component's outputs."""

import torch
from torch import Tensor


def output_gradient(value: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs over the output's norm: in the mean, (gradient · noise)² is |noise|² / |output|².

    The estimator is Hutchinson's (1990, doi 10.1080/03610919008812866).
    """
    signs = torch.randint(0, 2, value.shape, generator=generator).to(value.device, value.dtype) * 2 - 1
    return signs / value.norm().clamp_min(torch.finfo(value.dtype).tiny)
