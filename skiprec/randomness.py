"""Where random numbers come from: every draw has a seed of its own, made from what it is for.

A draw depends on (seed, epoch, step, purpose) alone. So a resumed run sees what the uninterrupted one would have,
and one arm's extra draws shift nothing in another's.
"""

import torch

from skiprec.seeds import derive_seed


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on the device, seeded by the parts that name what it is for."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))
