"""Adam for a table of which a step touches few rows: torch.optim.Adam's numbers, at the cost of those rows alone.

Adam moves a row also in steps that gave it no gradient, as its moments decay; SparseAdam and "lazy" Adam leave that
drift out, and end elsewhere. Here each row remembers the last step that touched it, and the drift of the steps that it
missed is made up for when it is next read.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skiprec.device import has_kernels, use_huge_pages
from skiprec.drift import Drift
from skiprec.touched_rows import Groups, group_ids, has_gpu_kernels, sums

# R rows of a table, D width, n rows at a time, S slots (a slot is a step since the last flush).

ROWS_AT_A_TIME = {"cpu": 1 << 10, "cuda": 1 << 18}
"""Rows that are worked on at once: on the CPU, with their moments 1.5 MB at D 128, which stays in a core's cache."""


class DeferredAdam(torch.optim.Optimizer):
    r"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) for tables with sparse gradients.

    A row whose last gradient came in step l has moments that only decay in the steps l+j that it missed. It moves by

    .. math:: -\sum_j \eta_{l+j} \frac{\beta_1^j m / (1-\beta_1^{l+j})}
                                  {\sqrt{\beta_2^j v / (1-\beta_2^{l+j})} + \epsilon}

    In float32 the sum is taken by a Gauss rule of two points (see `Drift`), in float64 term by term.

    Weight decay is not offered: with it, every row moves in every step by an amount of its own. On a GPU row 0 is taken
    for padding, without a gradient (see `touched_rows.Groups`).

    Args:
        params: Tables, 2-D. Each is moved into one tensor with its moments, as a strided view (`.data` is replaced).
        lr: Learning rate; may change from step to step.
        betas: Decay of the two moments.
        eps: Added to the denominator.
        max_deferred: Steps after which all rows are brought up to date, if `flush` was not called before.

    Raises:
        ValueError: If a number is out of range, or a parameter is no floating-point table.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Float[Tensor, ""] = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_deferred: int = 4096,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr is {lr}, expected more than 0")
        if not (0 <= betas[0] < 1 and 0 < betas[1] < 1):
            raise ValueError(f"betas are {betas}, expected one from 0 to less than 1, and one between 0 and 1")
        if not eps > 0:
            raise ValueError(f"eps is {eps}, expected more than 0")
        if max_deferred < 1:
            raise ValueError(f"max_deferred is {max_deferred}, expected at least 1")
        self.max_deferred = max_deferred
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take over more tables. Also called for those that the optimiser is made with."""
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        for table in added["params"]:
            if table.ndim != 2 or not table.is_floating_point():
                raise ValueError(f"a parameter is {table.dtype} of shape {tuple(table.shape)}, expected a 2-D table")
        for table in added["params"]:
            self._take_over(table, added)

    def _tables(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.param_groups:
            for table in group["params"]:
                yield table, group

    @torch.no_grad()
    def _take_over(self, table: Tensor, group: dict[str, Any]) -> None:
        # A row lies beside its moments: they are read and written together, and fetching costs more than arithmetic.
        storage = torch.empty(len(table), 3, table.shape[1], dtype=table.dtype, device=table.device)
        use_huge_pages(storage).zero_()
        storage[:, 0] = table
        table.data = storage[:, 0]
        state = self.state[table]
        state["step"] = torch.zeros((), dtype=torch.float64, device=table.device)
        state["exp_avg"], state["exp_avg_sq"] = storage[:, 1], storage[:, 2]
        state["slot"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        state["drift"] = Drift(state["step"], group["betas"], group["eps"], self.max_deferred, table.dtype)
        state["n_deferred"] = 0

    def _start_deferring(self, table: Tensor) -> None:
        """Every row is up to date."""
        state = self.state[table]
        state["slot"].zero_()
        state["drift"].restart(state["step"])
        state["n_deferred"] = 0

    @torch.no_grad()
    def read(self, table: Tensor, rows: Int[Tensor, " n"], out: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        """Rows as dense Adam would have them now. Nothing is changed: their drift is made up for when they are updated.

        Args:
            table: One of the parameters.
            rows: Indices; repeats are allowed.
            out: Filled and returned.
        """
        state = self.state[table]
        if self._has_kernels(table):
            from skiprec.row_kernels import over_rows, read_rows

            over_rows(read_rows, len(rows), *self._arrays(table), rows, out)
        elif has_gpu_kernels(table):
            from skiprec import gpu_kernels

            gpu_kernels.read_rows(*self._arrays(table), rows, out)
        else:
            for part in parts(len(rows), table.device):
                fetched = self._storage(table).index_select(0, rows[part])
                state["drift"].apply(fetched, state["slot"].index_select(0, rows[part]), out[part])
        return out

    def _storage(self, table: Tensor) -> Float[Tensor, "R 3 D"]:
        R, D = table.shape
        return table.detach().as_strided((R, 3, D), (3 * D, D, 1))

    def _has_kernels(self, table: Tensor) -> bool:
        return table.dtype == torch.float32 and has_kernels(table.device)

    def _arrays(self, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What every kernel takes first."""
        state = self.state[table]
        return self._storage(table), state["slot"], state["drift"].coefficients

    @torch.no_grad()
    def step(
        self, closure: Callable[[], Float[Tensor, ""]] | None = None, *, groups: Groups | None = None
    ) -> Float[Tensor, ""] | None:
        """Update the rows that have a gradient. A table without one is left alone, and its step is not counted.

        Args:
            closure: Called first, with gradients enabled.
            groups: Of the ids of the gradient of the only table, if they are known already.

        Raises:
            ValueError: If a gradient is not a sparse tensor of rows.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for table, param_group in self._tables():
            if table.grad is None:
                continue
            if not table.grad.is_sparse or table.grad.sparse_dim() != 1:
                raise ValueError(
                    "a gradient is dense, expected a sparse tensor of rows (for dense ones: torch.optim.Adam)"
                )
            # Not coalesced: that would write all values once more.
            self._update(table, param_group, groups or group_ids(table.grad._indices()[0]), table.grad._values())
            if not (table.is_cuda and torch.cuda.is_current_stream_capturing()):
                self._note_step(table)
        return loss

    @torch.no_grad()
    def note_replay(self) -> None:
        """Say that a captured CUDA graph has replayed a step: it does what a step does on the device, and no more."""
        for table, _ in self._tables():
            self._note_step(table)

    def _note_step(self, table: Tensor) -> None:
        state = self.state[table]
        state["n_deferred"] += 1
        if state["n_deferred"] == self.max_deferred:
            self._flush(table)

    def _update(self, table: Tensor, param_group: dict[str, Any], groups: Groups, gradients: Tensor) -> None:
        state, (beta1, beta2) = self.state[table], param_group["betas"]
        drift: Drift = state["drift"]
        state["step"] += 1
        # 0-d tensors on the device, not numbers: nothing has to come from there to be computed with.
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        lr = param_group["lr"]
        # Filled where it is, as copying a number to a GPU would wait. Cloned, as a tensor may be changed in place.
        rate = torch.zeros_like(state["step"]) + (lr.clone() if isinstance(lr, Tensor) else lr)
        factor, scale, eps = rate / correction1, correction2.rsqrt(), param_group["eps"]
        if self._has_kernels(table):
            from skiprec.row_kernels import over_rows, update_rows

            # Said, not inferred: a float64 among them would have the loop compiled for that, at half the speed.
            numbers = torch.tensor([beta1, beta2, 1 - beta1, 1 - beta2, factor, scale, eps], dtype=torch.float32)
            over_rows(
                update_rows,
                len(groups.rows),
                *self._arrays(table),
                groups.rows,
                groups.order,
                groups.edges,
                gradients,
                numbers,
            )
        elif has_gpu_kernels(table):
            from skiprec import gpu_kernels

            storage, slots, coefficients = self._arrays(table)
            factor, scale = factor.to(table.dtype), scale.to(table.dtype)
            gpu_kernels.update_rows(
                storage,
                slots,
                drift.slot,
                coefficients,
                (groups.rows, groups.order, groups.edges),
                gradients,
                factor,
                scale,
                param_group["betas"],
                eps,
            )
            drift.advance(state["step"], rate)
            return
        else:
            rows, gradient = groups.rows, sums(groups, gradients)
            storage = self._storage(table)
            factor, scale = factor.to(table.dtype), scale.to(table.dtype)
            for part in parts(len(rows), table.device):
                fetched = storage.index_select(0, rows[part])
                weights, first, second = fetched.unbind(1)
                decay1, decay2 = drift.apply(fetched, state["slot"].index_select(0, rows[part]), weights)
                first.mul_(decay1 * beta1).add_(gradient[part], alpha=1 - beta1)
                second.mul_(decay2 * beta2).addcmul_(gradient[part], gradient[part], value=1 - beta2)
                weights.addcdiv_(first * factor, second.sqrt().mul_(scale).add_(eps), value=-1)
                storage.index_copy_(0, rows[part], fetched)
        drift.advance(state["step"], rate)
        # Not index_fill_: with a tensor for its value that waits for the device.
        state["slot"].index_copy_(0, groups.rows, drift.slot.expand(len(groups.rows)))

    @torch.no_grad()
    def flush(self) -> None:
        """Bring every row up to date. Weights and moments are then Adam's, to be read as they are."""
        for table, _ in self._tables():
            if self.state[table]["n_deferred"] > 0:
                self._flush(table)

    def _flush(self, table: Tensor) -> None:
        state = self.state[table]
        if self._has_kernels(table):
            from skiprec.row_kernels import flush_rows, over_rows

            over_rows(flush_rows, len(table), *self._arrays(table))
        else:
            for part in parts(len(table), table.device):
                fetched = self._storage(table)[part]
                weights, first, second = fetched.unbind(1)
                decay1, decay2 = state["drift"].apply(fetched, state["slot"][part], weights)
                first.mul_(decay1)
                second.mul_(decay2)
        self._start_deferring(table)

    @torch.no_grad()
    def forget(self) -> None:
        """Be as before the first step, with no moments and nothing to make up for. Weights stay as they lie there."""
        for table, _ in self._tables():
            for name in ("step", "exp_avg", "exp_avg_sq"):
                self.state[table][name].zero_()
            self._start_deferring(table)

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.Adam's, with every row up to date."""
        self.flush()
        packed = super().state_dict()
        names = ("step", "exp_avg", "exp_avg_sq")
        packed["state"] = {i: {name: state[name] for name in names} for i, state in packed["state"].items()}
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over groups and moments from a `state_dict`; the weights are the caller's to restore, as always.

        The moments are copied to where they lie beside the weights.

        Raises:
            ValueError: If it is of other groups.
        """
        sizes = [
            [len(group["params"]) for group in groups] for groups in (self.param_groups, state_dict["param_groups"])
        ]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the state is of groups of {sizes[1]} tables, expected {sizes[0]}")
        for group, loaded in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group |= {name: value for name, value in loaded.items() if name != "params"}
        for index, (table, group) in enumerate(self._tables()):
            state = self.state[table]
            for name in ("step", "exp_avg", "exp_avg_sq"):
                state[name].copy_(state_dict["state"][index][name])
            state["drift"] = Drift(state["step"], group["betas"], group["eps"], self.max_deferred, table.dtype)
            self._start_deferring(table)


def parts(n: int, device: torch.device) -> Iterator[slice]:
    """Slices of n rows, few enough to be worked on at once."""
    size = ROWS_AT_A_TIME[device.type]
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
