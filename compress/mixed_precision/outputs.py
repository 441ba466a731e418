"""Gradients that make the loss of `sensitivity` the noise over signal at a component's outputs."""

import torch
from torch import Tensor


def output_gradient(value: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs over the output's norm: in the mean, (gradient · noise)² is |noise|² / |output|².

    The estimator is Hutchinson's (1990, doi 10.1080/03610919008812866).
    """
    norm: Tensor = value.norm().clamp_min(torch.finfo(value.dtype).tiny)
    return random_signs(value, generator) / norm


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """−1 and 1 in the shape of a tensor."""
    signs: Tensor = torch.randint(0, 2, like.shape, generator=generator).to(like.device, like.dtype) * 2 - 1
    return signs
