"""Plain PyTorch, as a good engineer would write this work without a library: the peer that costs nothing to have.

One lookup a step for inputs, targets and negatives together (each lookup would make a dense gradient of its own),
vectorised negatives, no DataLoader. Variants: "" is fused dense Adam; "malloc" the same with glibc told to keep freed
buffers, which few know of; "sparse" is that with SparseAdam for the table, which is not Adam: rows without a gradient
do not move.
"""

import measuring
import torch
import torch.nn.functional as F
from measuring import BLOCKS, DROPOUT, FEED_FORWARD, HEADS, LEARNING_RATE, MAX_GRAD_NORM, B, D, N, T
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.query_key_value, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.wide, self.narrow = nn.Linear(D, FEED_FORWARD), nn.Linear(FEED_FORWARD, D)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        p = DROPOUT if self.training else 0.0
        width = hidden.shape[1]
        heads = self.query_key_value(self.norm_1(hidden)).view(-1, width, 3, HEADS, D // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        attended = self.out(attended.transpose(1, 2).reshape(-1, width, D))
        hidden = hidden + F.dropout(attended, p, self.training)
        inner = F.dropout(F.gelu(self.wide(self.norm_2(hidden))), p, self.training)
        return hidden + F.dropout(self.narrow(inner), p, self.training)


class Model(nn.Module):
    """Item and position embeddings, two blocks, Linear and GELU."""

    def __init__(self, items: int, sparse: bool) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, D, sparse=sparse)
        self.items.weight.data.uniform_(-0.04, 0.04)
        self.positions = nn.Parameter(torch.randn(T, D) * 0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.last_norm, self.head = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, T, D) embeddings of the inputs -> (B, T, D)."""
        hidden = F.dropout(rows + self.positions, DROPOUT, self.training)
        return F.gelu(self.head(self.last_norm(self.blocks(hidden))))


def draw_outside(sessions: Tensor, items: int) -> Tensor:
    """(B, N) draws from the items that are not in each session: move a draw up by the session's items below it."""
    ordered = sessions.sort(1).values
    repeat = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    ordered = ordered.masked_fill(repeat, 2 * items).sort(1).values
    free = items - (ordered <= items).sum(1, keepdim=True)
    draws = 1 + torch.randint(2**62, (len(sessions), N), device=sessions.device) % free
    return draws + torch.searchsorted(
        ordered - torch.arange(ordered.shape[1], device=ordered.device), draws, right=True
    )


def loss_of(model: Model, sessions: Tensor, items: int, mode: str) -> Tensor:
    """Sampled softmax of the T targets of each training prefix against N negatives."""
    n = len(sessions)
    inputs, targets = sessions[:, :T], sessions[:, 1 : T + 1]
    if mode == "session":
        negatives = draw_outside(sessions[:, : T + 1], items)
        rows = model.items(torch.cat([inputs, targets, negatives], 1))
        input_rows, target_rows, negative_rows = rows.split([T, T, N], 1)
        predicted = model(input_rows)
        scores = torch.bmm(predicted, negative_rows.transpose(1, 2))
    else:
        negatives = 1 + torch.randint(items, (N,), device=sessions.device)
        rows = model.items(torch.cat([inputs.flatten(), targets.flatten(), negatives]))
        predicted = model(rows[: n * T].view(n, T, D))
        target_rows = rows[n * T : 2 * n * T].view(n, T, D)
        scores = predicted @ rows[2 * n * T :].T
        own = torch.isin(negatives, sessions).nonzero().flatten()  # few or none: compare only these with the sessions
        if len(own):
            hit = (sessions[:, : T + 1, None] == negatives[own]).any(1)  # (B, few)
            scores[:, :, own] = scores[:, :, own].masked_fill(hit[:, None], -torch.inf)
    positive = (predicted * target_rows).sum(-1, keepdim=True)
    logits = torch.cat([positive, scores], -1).view(n * T, 1 + N)
    return F.cross_entropy(logits, torch.zeros(n * T, dtype=torch.int64, device=logits.device))


def clip(model: Model) -> None:
    """Gradient norm at most MAX_GRAD_NORM; torch's own does not take sparse gradients."""
    table = model.items.weight
    if not table.grad.is_sparse:
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        return
    table.grad = table.grad.coalesce()
    gradients = [p.grad for p in model.parameters() if p is not table] + [table.grad.values()]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    torch._foreach_mul_(gradients, (MAX_GRAD_NORM / (norm + 1e-6)).clamp(max=1.0))


def main() -> None:
    """Measure what the command line asks for."""
    task = measuring.read_task()
    if task.variant in ("malloc", "sparse"):
        measuring.keep_freed_memory()
    sessions = measuring.whole_sessions(task).to(task.device)
    sparse = task.variant == "sparse"
    model = Model(task.items, sparse).to(task.device)
    if sparse:
        dense = [p for p in model.parameters() if p is not model.items.weight]
        optimizers = [
            torch.optim.SparseAdam([model.items.weight], lr=LEARNING_RATE),
            torch.optim.Adam(dense, lr=LEARNING_RATE, fused=True),
        ]
    else:
        optimizers = [torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)]

    def train(i: int) -> int:
        loss = loss_of(model, sessions[measuring.batch_rows(i).to(task.device)], task.items, task.mode)
        model.zero_grad(set_to_none=True)
        loss.backward()
        clip(model)
        for optimizer in optimizers:
            optimizer.step()
        return B

    @torch.no_grad()
    def evaluate(i: int) -> int:
        size = measuring.EVALUATED_AT_A_TIME
        rows = torch.arange(i * size, (i + 1) * size, device=sessions.device) % len(sessions)
        predicted = model(model.items(sessions[rows, 1 : T + 1]))[:, -1]
        with_target = torch.cat([sessions[rows, T + 1 : T + 2].int(), candidates[rows]], 1)
        scores = torch.bmm(model.items(with_target), predicted[:, :, None]).squeeze(2)
        ranks.append(1 + (scores[:, 1:] > scores[:, :1]).sum(1) + (scores[:, 1:] == scores[:, :1]).sum(1) / 2)
        return size

    if task.measure == "train":
        model.train()
        figures = measuring.clock(train, task.seconds)
    else:
        model.eval()
        ranks: list[Tensor] = []
        candidates = torch.randint(1, task.items + 1, (len(sessions), measuring.N_CANDIDATES), dtype=torch.int32)
        candidates = candidates.to(task.device)
        figures = measuring.clock(evaluate, task.seconds)
    notes = "SparseAdam is not Adam" if sparse and task.measure == "train" else ""
    measuring.report(figures, notes=notes)


if __name__ == "__main__":
    main()
