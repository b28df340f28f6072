"""Where random numbers come from: every draw has a seed of its own, made from what it is for.

A draw depends on (seed, epoch, step, purpose) alone. So a resumed run sees what the uninterrupted one would have,
and one arm's extra draws shift nothing in another's.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from skiprec.seeds import derive_seed

_GLOBAL = threading.Lock()
"""Held by the one that draws from torch's global generator."""


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on the device, seeded by the parts that name what it is for."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


@contextmanager
def global_generator(*parts: int | str) -> Iterator[None]:
    """Seed torch's global generator of the CPU, for what can draw from no other, by one thread at a time.

    Afterwards it is as it was.
    """
    with _GLOBAL, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield


class Draws:
    """The generators of a step's draws, one for each purpose; they stay the same objects from step to step.

    So a captured CUDA graph can hold them: they are seeded between its replays, never within.

    Args:
        device: Where is drawn.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self.generators: dict[str, torch.Generator] = {}
        self.step: tuple[int | str, ...] = ()

    def start(self, *step: int | str) -> "Draws":
        """Seed all for a step, which is named by numbers such as (seed, epoch, step). Returns itself."""
        self.step = step
        for purpose, drawn_from in self.generators.items():
            drawn_from.manual_seed(derive_seed(*step, purpose))
        return self

    def __call__(self, purpose: str) -> torch.Generator:
        """The generator of this step for a purpose."""
        if purpose not in self.generators:
            self.generators[purpose] = generator(self.device, *self.step, purpose)
        return self.generators[purpose]
