"""A step of training as one CUDA graph: a GPU does its hundreds of small operations faster than Python can name them.

What a step computes is that of the same step without: the graph is made by running the step's own code once.
"""

import threading
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from skiprec.batches import Batch
from skiprec.randomness import Draws

WARM_UP_STEPS = 3
"""Steps without a graph first: kernels are compiled in them, libraries started, optimiser states made."""

_CAPTURING = threading.Lock()
"""Held by the thread that captures, and by one that gives memory back."""


class CapturedStep:
    """Does the steps of one learner, all of the same shape.

    Nothing in a step may ask the device for a value, and what it changes must stay where it is in memory.

    Args:
        device: A CUDA device.
        draws: Started before each call; all that a step draws from.
    """

    def __init__(self, device: torch.device, draws: Draws) -> None:
        # A thread's own, where it has one: there are 32 in all, and one more would be one of another thread's.
        own = torch.cuda.current_stream(device)
        self.stream = torch.cuda.Stream(device) if own == torch.cuda.default_stream(device) else own
        self.draws = draws
        self.done = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: Batch | None = None
        self.result: Tensor | None = None

    def __call__(self, batch: Batch, step: Callable[[Batch], Tensor], replayed: Callable[[], None]) -> Tensor:
        """Do a step.

        Args:
            batch: Of the shape of the batches before.
            step: All that the device does; called in the warm-up and once more for the graph.
            replayed: Called after a replay: does what a step does on the host.

        Returns:
            What `step` returned, in memory that the next call writes over.
        """
        if self.done < WARM_UP_STEPS:
            self.done += 1
            return self._on_stream(lambda: step(batch))
        if self.graph is None:
            self._capture(batch, step)
        for fixed, values in zip(tensors(self.batch), tensors(batch), strict=True):
            fixed.copy_(values)
        self.graph.replay()
        replayed()
        return self.result

    def _on_stream(self, work: Callable[[], Tensor]) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _capture(self, batch: Batch, step: Callable[[Batch], Tensor]) -> None:
        self.batch = Batch(*(values.clone() for values in tensors(batch)))
        graph = torch.cuda.CUDAGraph()
        for generator in self.draws.generators.values():
            graph.register_generator_state(generator)
        # By one thread at a time: to synchronise the device, as a capture begins, would break another's. What other
        # threads do meanwhile, such as taking memory, is no part of it and is no error of theirs.
        # On the stream already, or an error at the capture's end would leave the thread there.
        with _CAPTURING, torch.cuda.stream(self.stream):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # the graph has memory of its own; what the warm-up took is free for it
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = step(self.batch)
        self.graph = graph  # now: after an error, such as for want of memory, there is none


def is_half_free(device: torch.device) -> bool:
    """Whether half of a CUDA device's memory is free, of all that are at work there."""
    with _CAPTURING:
        torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return 2 * free > total


def tensors(batch: Batch) -> list[Tensor]:
    """A batch's fields, in their order."""
    return [getattr(batch, field.name) for field in fields(batch)]
