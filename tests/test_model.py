"""The encoder: what each position may see, where positions are counted from, how weights start, where dropout is."""

import itertools
import math

import pytest
import torch
from test_encoder_block import CPU, attention_bias, plain_attention, random_parameters
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import skiprec.model
from skiprec.encoder_block import DropoutMasks
from skiprec.model import ModelConfig, SequenceEncoder, position_mask, truncated_normal_

N_ITEMS, MAX_LENGTH = 30, 8

VARIANTS = list(itertools.product(("unidirectional", "bidirectional"), ("pre", "post"), ("from_end", "from_start")))
every_variant = pytest.mark.parametrize(("architecture", "norm", "positions"), VARIANTS)
causal_variants = pytest.mark.parametrize(("architecture", "norm", "positions"), VARIANTS[:4])


def make(seed: int = 1, n_items: int = N_ITEMS, max_length: int = MAX_LENGTH, **config) -> SequenceEncoder:
    """A model in float64 without dropout, its embeddings large enough for every input to count."""
    torch.manual_seed(seed)
    small = {"dim": 16, "n_heads": 4, "feed_forward": 16, "init": "torch"}
    return SequenceEncoder(ModelConfig(**small | config), n_items, max_length).double().eval()


SESSIONS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0], [7, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([6, 3, 1])
REAL = position_mask(LENGTHS, 6)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-10)


@causal_variants
@torch.no_grad()
def test_changing_later_items_changes_nothing_at_a_position(architecture, norm, positions):
    model = make(architecture=architecture, norm=norm, positions=positions)
    before = model(SESSIONS, LENGTHS)
    for i in range(5):
        changed = SESSIONS.clone()
        changed[0, i + 1 :] = torch.arange(20, 25)[: 5 - i]
        after = model(changed, LENGTHS)
        assert close(after[0, : i + 1], before[0, : i + 1])
        assert not (after[0, i + 1] - before[0, i + 1]).abs().max() < 1e-6


def test_no_gradient_reaches_a_position_from_later_items():
    model = make()
    hidden = model(SESSIONS[:1], LENGTHS[:1])
    hidden[0, 2].sum().backward()
    assert model.items.weight.grad.any(1).nonzero().flatten().tolist() == [1, 3, 4]  # the first three items


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_the_bidirectional_model_sees_both_ways(norm):
    model = make(architecture="bidirectional", norm=norm)
    before = model(SESSIONS, LENGTHS)
    for i in range(6):
        changed = SESSIONS.clone()
        changed[0, i] = 20
        assert ((model(changed, LENGTHS) - before)[0].abs().amax(-1) > 1e-6).all()


@every_variant
@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(architecture, norm, positions):
    model = make(architecture=architecture, norm=norm, positions=positions)
    filled = torch.where(REAL, SESSIONS, 17)
    assert close(model(filled, LENGTHS)[REAL], model(SESSIONS, LENGTHS)[REAL])
    assert close(model.next_item(filled, LENGTHS), model.next_item(SESSIONS, LENGTHS))


@every_variant
@torch.no_grad()
def test_the_width_of_the_padding_changes_nothing(architecture, norm, positions):
    model = make(architecture=architecture, norm=norm, positions=positions)
    wide = nn.functional.pad(SESSIONS, (0, 2))
    assert close(model(wide, LENGTHS)[:, :6][REAL], model(SESSIONS, LENGTHS)[REAL])
    for b, length in enumerate(LENGTHS.tolist()):
        alone = SESSIONS[b : b + 1, :length]
        assert close(model(alone, LENGTHS[b : b + 1])[0], model(SESSIONS, LENGTHS)[b, :length])
        assert close(model.next_item(alone, LENGTHS[b : b + 1])[0], model.next_item(SESSIONS, LENGTHS)[b])


@every_variant
@torch.no_grad()
def test_a_position_is_finite_everywhere_padding_included(architecture, norm, positions):
    model = make(architecture=architecture, norm=norm, positions=positions).train()
    assert model(SESSIONS, LENGTHS).isfinite().all()


def used_positions(model: SequenceEncoder, length: int, *, serve: bool) -> list[int]:
    """Rows of the position table that reach the output of a session's real positions."""
    items = torch.arange(1, length + 1)[None]
    lengths = torch.tensor([length])
    output = model.next_item(items, lengths) if serve else model(items, lengths)
    output.sum().backward()
    return model.positions.weight.grad.any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("serve", [False, True])
def test_positions_from_the_end_give_the_last_item_the_last_position(serve):
    assert used_positions(make(), 3, serve=serve) == [5, 6, 7]
    assert used_positions(make(), 8, serve=serve) == list(range(8))


def test_positions_from_the_start_give_the_first_item_the_first_position():
    assert used_positions(make(positions="from_start"), 3, serve=True) == [0, 1, 2]


def test_the_mask_takes_a_position_of_its_own_after_the_session():
    """K + 1 positions serve a session of K; the model is made with max_length + 1 of them."""
    model = make(architecture="bidirectional")
    assert model.n_positions == MAX_LENGTH + 1
    assert used_positions(model, 3, serve=True) == [5, 6, 7, 8]
    assert used_positions(make(architecture="bidirectional"), 3, serve=False) == [6, 7, 8]
    assert used_positions(make(architecture="bidirectional", positions="from_start"), 3, serve=True) == [0, 1, 2, 3]
    assert used_positions(make(architecture="bidirectional"), MAX_LENGTH, serve=True) == list(range(9))
    full = make(architecture="bidirectional", positions="from_start")
    assert used_positions(full, MAX_LENGTH, serve=True) == list(range(9))


def test_only_the_bidirectional_model_has_a_mask_row_and_position():
    causal, both = make(), make(architecture="bidirectional")
    assert (len(causal.items.weight), len(causal.positions.weight)) == (1 + N_ITEMS, MAX_LENGTH)
    assert (len(both.items.weight), len(both.positions.weight)) == (2 + N_ITEMS, MAX_LENGTH + 1)
    assert both.mask_index == N_ITEMS + 1


@pytest.mark.parametrize("positions", ["from_end", "from_start"])
@torch.no_grad()
def test_the_next_item_of_a_causal_model_is_its_output_at_the_last_item(positions):
    model = make(positions=positions)
    random_parameters(model)
    hidden = model(SESSIONS, LENGTHS)
    assert close(model.next_item(SESSIONS, LENGTHS), torch.stack([hidden[0, 5], hidden[1, 2], hidden[2, 0]]))


@pytest.mark.parametrize("positions", ["from_end", "from_start"])
@torch.no_grad()
def test_the_next_item_of_a_bidirectional_model_is_its_output_at_an_appended_mask(positions):
    model = make(architecture="bidirectional", positions=positions)
    random_parameters(model)
    mask = model.mask_index
    by_hand = torch.tensor([[3, 1, 4, 1, 5, 9, mask], [2, 6, 5, mask, 0, 0, 0], [7, mask, 0, 0, 0, 0, 0]])
    hidden = model(by_hand, LENGTHS + 1)
    assert close(model.next_item(SESSIONS, LENGTHS), torch.stack([hidden[0, 6], hidden[1, 3], hidden[2, 1]]))


@every_variant
@torch.no_grad()
def test_every_real_item_counts(architecture, norm, positions):
    model = make(architecture=architecture, norm=norm, positions=positions)
    before = model.next_item(SESSIONS, LENGTHS)
    for i in range(6):
        changed = SESSIONS.clone()
        changed[0, i] = 20
        assert (model.next_item(changed, LENGTHS) - before)[0].abs().max() > 1e-6


@torch.no_grad()
def test_serving_does_not_change_the_session():
    for architecture in ("unidirectional", "bidirectional"):
        items = SESSIONS.clone()
        make(architecture=architecture).next_item(items, LENGTHS)
        assert torch.equal(items, SESSIONS)


def by_kind(model: SequenceEncoder) -> dict[str, dict[str, torch.Tensor]]:
    kinds: dict[str, dict[str, torch.Tensor]] = {"table": {}, "matrix": {}, "norm": {}, "bias": {}}
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if name in ("items.weight", "positions.weight"):
            kind = "table"
        elif id(parameter) in norms:
            kind = "norm"
        else:
            kind = "matrix" if parameter.ndim == 2 else "bias"
        kinds[kind][name] = parameter.detach()
    assert all(kinds.values())
    return kinds


def big(init: str, architecture: str = "bidirectional") -> SequenceEncoder:
    """Enough rows for a standard deviation to be told."""
    return make(n_items=2000, max_length=400, dim=64, init=init, architecture=architecture).float()


def as_pytorch_makes(model: SequenceEncoder) -> bool:
    """Whether the layers beside the tables have the spread of PyTorch's own initialisation, read from fresh layers."""
    torch.manual_seed(99)
    fresh = nn.TransformerEncoderLayer(64, 4, 16)
    block = model.blocks[0]
    pairs = [
        (block.linear1.weight, fresh.linear1.weight),
        (block.self_attn.in_proj_weight, fresh.self_attn.in_proj_weight),
        (model.head[0].weight, nn.Linear(64, 64).weight),
    ]
    return all(0.9 < (ours.std() / theirs.std()).item() < 1.1 for ours, theirs in pairs)


def test_init_normal_cuts_the_tables_at_two_standard_deviations_of_002():
    """A normal cut at +-2 std has 0.8796 of its standard deviation."""
    model = big("normal")
    for name, table in by_kind(model)["table"].items():
        values = table[1:] if name == "items.weight" else table
        assert values.abs().max() <= 0.04
        assert values.abs().max() > 0.039
        assert values.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02)
        assert values.mean().abs() < 0.001
    assert as_pytorch_makes(model)


def test_init_paper_is_almost_uniform_within_002_with_zero_biases():
    """A normal of std 1 cut at +-0.02 is flat: its standard deviation is 0.02 / sqrt(3)."""
    model = big("paper")
    kinds = by_kind(model)
    for name, weights in (kinds["table"] | kinds["matrix"]).items():
        values = weights[1:] if name == "items.weight" else weights
        assert values.abs().max() <= 0.02, name
        assert values.std().item() == pytest.approx(0.02 / 3**0.5, rel=0.06), name
    assert not any(bias.any() for bias in kinds["bias"].values())
    for name, values in kinds["norm"].items():
        assert (values == (1 if name.endswith("weight") else 0)).all(), name


def test_init_torch_draws_the_tables_from_a_standard_normal():
    model = big("torch")
    for name, table in by_kind(model)["table"].items():
        values = table[1:] if name == "items.weight" else table
        assert values.std().item() == pytest.approx(1, rel=0.03)
        assert values.abs().max() > 3
    assert as_pytorch_makes(model)


@pytest.mark.parametrize("init", ["normal", "paper", "torch"])
def test_the_padding_row_is_zero_and_the_mask_row_is_not(init):
    model = make(init=init, architecture="bidirectional")
    assert not model.items.weight[0].any()
    assert model.items.weight[model.mask_index].any()


@pytest.mark.parametrize("init", ["normal", "paper", "torch"])
def test_layers_start_from_different_weights(init):
    first, second = make(init=init).blocks
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert not torch.equal(first.self_attn.in_proj_weight, second.self_attn.in_proj_weight)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    def weights(seed):
        return torch.cat([p.flatten() for p in make(seed).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_head_is_a_linear_layer_and_gelu():
    """GELU is never below -0.17, and the outputs of a linear layer are."""
    model = make()
    output = model(SESSIONS, LENGTHS)
    assert output.min() > -0.17
    assert output.max() > 0.17


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_what_reaches_the_head_is_normalised(norm):
    """By the LayerNorm after the last block, or by the last block's own."""
    model = make(norm=norm)
    reached = []
    model.last_norm.register_forward_hook(lambda _, args, output: reached.append(output))
    model(SESSIONS, LENGTHS)
    assert reached[0].mean(-1).abs().max() < 1e-9
    assert torch.allclose(reached[0].var(-1, unbiased=False), torch.ones(3, 6, dtype=torch.float64), atol=1e-3)


def test_the_shape_is_as_configured():
    model = make(n_layers=3, activation="relu", dropout=0.4, feed_forward=24)
    assert len(model.blocks) == 3
    block = model.blocks[2]
    assert block.linear1.weight.shape == (24, 16)
    assert block.self_attn.num_heads == 4
    assert block.activation is nn.functional.relu
    assert (block.dropout.p, block.dropout1.p, block.self_attn.dropout) == (0.4, 0.4, 0.4)
    assert make().blocks[0].activation is nn.functional.gelu
    assert make(norm="pre").blocks[0].norm_first
    assert not make(norm="post").blocks[0].norm_first
    assert isinstance(make(norm="pre").last_norm, nn.LayerNorm)
    assert isinstance(make(norm="post").last_norm, nn.Identity)


def test_the_defaults_are_those_of_the_paper():
    config = ModelConfig()
    assert (config.dim, config.n_layers, config.n_heads, config.feed_forward) == (128, 2, 8, 128)
    assert (config.architecture, config.norm, config.positions, config.init) == (
        "unidirectional",
        "pre",
        "from_end",
        "normal",
    )
    assert (config.activation, config.dropout) == ("gelu", 0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim is 0, expected at least 1"),
        ({"n_layers": 0}, "n_layers is 0, expected at least 1"),
        ({"dim": 10, "n_heads": 4}, "n_heads (4) must divide dim (10)"),
        ({"dropout": 1.0}, "dropout is 1.0, expected 0 or more and less than 1"),
    ],
)
def test_a_model_config_out_of_range_says_so(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared below
        ModelConfig(**settings)
    assert str(caught.value) == message


@pytest.fixture
def drawn(monkeypatch):
    """The masks of each forward pass, and what was taken of them."""
    made = []

    class Noting(DropoutMasks):
        def __init__(self, rate, n, *others):
            super().__init__(rate, n, *others)
            self.rate, self.n, self.taken = rate, n, []
            made.append(self)

        def take(self, shape):
            self.taken.append(math.prod(shape))
            return super().take(shape)

    monkeypatch.setattr(skiprec.model, "DropoutMasks", Noting)
    return made


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_layers": 1, "feed_forward": 7},
        {"n_layers": 3, "n_heads": 2, "feed_forward": 40},
        {"dim": 9, "n_heads": 3, "feed_forward": 5},
    ],
)
def test_a_forward_pass_uses_up_exactly_what_it_draws(drawn, architecture, shape):
    """Of different widths of the batch, too."""
    model = make(architecture=architecture, dropout=0.3, **shape).train()
    for width, lengths in ((6, [6, 3, 1]), (1, [1]), (5, [5, 2])):
        model(SESSIONS[: len(lengths), :width], torch.tensor(lengths))
        masks = drawn[-1]
        assert masks.rate == 0.3
        assert sum(masks.taken) == masks.n
        assert len(masks.left) == -masks.n % 4  # what the last 64 bits gave beyond it
    n_layers = len(model.blocks)
    assert {len(masks.taken) for masks in drawn} == {1 + 4 * n_layers}


@torch.no_grad()
def test_nothing_is_drawn_while_serving():
    model = make(dropout=0.5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model(SESSIONS, LENGTHS)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, model(SESSIONS, LENGTHS))
    assert close(first, make(dropout=0.0)(SESSIONS, LENGTHS))


@torch.no_grad()
def test_in_training_the_seed_decides_what_is_dropped():
    model = make(dropout=0.5).train()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(SESSIONS, LENGTHS))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], model.eval()(SESSIONS, LENGTHS))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_dropout_acts_where_pytorchs_encoder_layer_has_it(norm):
    """Input, attention weights, both parts' outputs and the feed-forward's activations, by a forward pass from its
    own factors: what PyTorch's parts give, multiplied by hand."""
    model = make(dropout=0.4, norm=norm, n_layers=1).train()
    torch.manual_seed(8)
    output = model(SESSIONS, LENGTHS)
    torch.manual_seed(8)
    B, T, D, H = 3, 6, 16, 4
    masks = DropoutMasks(0.4, B * T * D + B * T * (H * T + 16 + 2 * D), CPU, torch.float64)
    places = (MAX_LENGTH - LENGTHS[:, None] + torch.arange(T)).clamp(max=MAX_LENGTH - 1)
    x = (model.items(SESSIONS) + model.positions(places)) * masks.take((B, T, D))
    block = model.blocks[0]
    bias = attention_bias(LENGTHS, T, H, causal=True, padded=True)

    def attend(y):
        projected = y @ block.self_attn.in_proj_weight.T + block.self_attn.in_proj_bias
        mixed = plain_attention(projected, bias, masks.take((B * H, T, T)), H)
        return block.self_attn.out_proj(mixed) * masks.take((B, T, D))

    def feed_forward(y):
        inner = nn.functional.gelu(block.linear1(y)) * masks.take((B, T, 16))
        return block.linear2(inner) * masks.take((B, T, D))

    if norm == "pre":
        x = x + attend(block.norm1(x))
        x = x + feed_forward(block.norm2(x))
    else:
        x = block.norm1(x + attend(x))
        x = block.norm2(x + feed_forward(x))
    assert close(output, model.head(model.last_norm(x)))


LEVELS = torch.tensor([[0, 1, 2, 3, 0, 2], [3, 0, 1, 0, 0, 0], [2, 0, 0, 0, 0, 0]], dtype=torch.int8)


def make_with_levels(**config) -> SequenceEncoder:
    """As `make`, with an embedding of the levels that tells them apart."""
    model = make(skip_input=True, **config)
    with torch.no_grad():
        model.skip_levels.weight[:4] = torch.randn(4, 16, dtype=torch.float64)
    return model


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
@torch.no_grad()
def test_a_skip_level_adds_its_embedding_to_its_item(architecture):
    """The same numbers from inputs to which it was added by hand."""
    model, plain = make_with_levels(architecture=architecture), make(architecture=architecture)
    vectors = model.items(SESSIONS) + model.skip_levels.weight[LEVELS.long()]
    assert close(model(SESSIONS, LENGTHS, LEVELS)[REAL], plain.encode(vectors, LENGTHS)[REAL])
    assert (model(SESSIONS, LENGTHS, LEVELS) - plain(SESSIONS, LENGTHS))[REAL].abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["unidirectional", "bidirectional"])
@torch.no_grad()
def test_serving_reads_the_level_of_every_item_of_the_history_and_none_at_the_mask(architecture):
    model = make_with_levels(architecture=architecture)
    before = model.next_item(SESSIONS, LENGTHS, LEVELS)
    if architecture == "unidirectional":
        hidden = model(SESSIONS, LENGTHS, LEVELS)
        assert close(before, torch.stack([hidden[0, 5], hidden[1, 2], hidden[2, 0]]))
    else:
        items, levels = (torch.nn.functional.pad(x, (0, 1)) for x in (SESSIONS, LEVELS))
        items[[0, 1, 2], LENGTHS], levels[[0, 1, 2], LENGTHS] = model.mask_index, 4
        hidden = model(items, LENGTHS + 1, levels)
        assert close(before, torch.stack([hidden[0, 6], hidden[1, 3], hidden[2, 1]]))
    for i in range(6):
        changed = LEVELS.clone()
        changed[0, i] = (changed[0, i] + 1) % 4
        assert (model.next_item(SESSIONS, LENGTHS, changed) - before)[0].abs().max() > 1e-6
    padded = LEVELS.masked_fill(~REAL, 3)
    assert close(model.next_item(SESSIONS, LENGTHS, padded), before)
    assert LEVELS.max() == 3  # what is handed in stays as it was


@torch.no_grad()
def test_a_later_level_changes_nothing_at_a_position_of_a_causal_model():
    model = make_with_levels()
    before = model(SESSIONS, LENGTHS, LEVELS)
    changed = LEVELS.clone()
    changed[0, 3:] = 1
    assert close(model(SESSIONS, LENGTHS, changed)[0, :3], before[0, :3])


@pytest.mark.parametrize("serve", [False, True])
def test_a_model_with_skip_input_needs_levels(serve):
    model = make_with_levels()
    with pytest.raises(
        ValueError, match=r"^the model has skip_input, so it needs the skip levels of its input items, go"
    ):
        (model.next_item if serve else model)(SESSIONS, LENGTHS)


@torch.no_grad()
def test_a_model_without_skip_input_does_not_read_levels():
    model = make()
    assert torch.equal(model.next_item(SESSIONS, LENGTHS, LEVELS), model.next_item(SESSIONS, LENGTHS))


@pytest.mark.parametrize("init", ["normal", "paper", "torch"])
def test_skip_input_shifts_no_other_initial_weight(init):
    without, model = make(init=init).state_dict(), make(init=init, skip_input=True).state_dict()
    assert model.keys() - without.keys() == {"skip_levels.weight"}
    assert all(torch.equal(model[name], value) for name, value in without.items())
    assert not model["skip_levels.weight"].any()


@pytest.mark.parametrize("at_a_time", [7, 640, 1000])
def test_first_values_are_the_same_however_many_are_looked_at_together(at_a_time, monkeypatch):
    """All that fell outside were drawn again, wherever they stand."""
    tables = []
    for size in (10**6, at_a_time):
        monkeypatch.setattr(skiprec.model, "AT_A_TIME", size)
        torch.manual_seed(5)
        tables.append(torch.empty(20, 32))
        truncated_normal_(tables[-1], std=0.02)
    assert torch.equal(*tables)
    torch.manual_seed(5)
    drawn = torch.empty(20, 32).view(-1).normal_(0, 0.02).view(20, 32)
    was_outside = drawn.abs() > 0.04
    assert torch.equal(tables[0] == drawn, ~was_outside)
    assert was_outside.sum() > 10


class Products(TorchDispatchMode):
    """Notes the dtypes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[set[torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise", "addmm_"):
            self.dtypes.append({a.dtype for a in args if isinstance(a, torch.Tensor)})
        return func(*args, **(kwargs or {}))


def trained_once(monkeypatch, architecture: str, norm: str, precision: str) -> tuple:
    """Output, gradients and products' dtypes of one pass both ways, with dropout, by torch's operations."""
    monkeypatch.setattr(skiprec.encoder_block, "has_kernels", lambda device: False)
    model = make(architecture=architecture, norm=norm, dropout=0.3, precision=precision, dim=32, n_layers=2).float()
    model.train()
    vectors = model.items.weight[SESSIONS].detach().requires_grad_()
    with Products() as products:
        out = model.encode(vectors, LENGTHS, generator=torch.Generator().manual_seed(2))
        (out * REAL[..., None]).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return out.detach()[REAL], gradients | {"vectors": vectors.grad}, products.dtypes


@pytest.mark.parametrize(("architecture", "norm"), [("unidirectional", "pre"), ("bidirectional", "post")])
def test_bfloat16_is_the_products_alone_and_near_float32(monkeypatch, architecture, norm):
    """Each product of both passes takes and gives bfloat16; what comes of it is float32, within its 8 bits."""
    out, gradients, dtypes = trained_once(monkeypatch, architecture, norm, "bfloat16")
    expected, exact, _ = trained_once(monkeypatch, architecture, norm, "float32")
    # A block: 4 layers and 2 products of attention, and the head's; twice as many on the way back.
    assert len(dtypes) == 3 * (2 * (4 + 2) + 1)
    assert all(of == {torch.bfloat16} for of in dtypes)
    assert {out.dtype, *(g.dtype for g in gradients.values())} == {torch.float32}
    assert 1e-4 < ((out - expected).norm() / expected.norm()) < 0.02
    assert gradients.keys() == exact.keys()
    for name, gradient in gradients.items():
        assert (gradient - exact[name]).norm() < 0.03 * exact[name].norm(), name


def test_bfloat16_is_all_products_where_float32_has_loops_of_its_own():
    """On a CPU as it is, of a size that oneDNN would take: nothing but the encoder's dtype changes."""
    outs = []
    for precision in ("float32", "bfloat16"):
        model = make(dropout=0.0, dim=32, precision=precision).float().train()
        vectors = model.items.weight[SESSIONS.repeat(20, 1)].detach().requires_grad_()
        with Products() as products:
            out = model.encode(vectors, LENGTHS.repeat(20))
            (out * REAL.repeat(20, 1)[..., None]).square().sum().backward()
        outs.append(out.detach()[REAL.repeat(20, 1)])
    assert len(products.dtypes) == 3 * (2 * (4 + 2) + 1)
    assert all(of == {torch.bfloat16} for of in products.dtypes)
    assert 1e-4 < ((outs[0] - outs[1]).norm() / outs[0].norm()) < 0.02


@torch.no_grad()
def test_bfloat16_is_for_training_alone():
    """A model that is evaluated or served, whatever it was trained in, is float32: bit for bit."""
    one, other = (make(precision=precision).float() for precision in ("float32", "bfloat16"))
    assert torch.equal(one(SESSIONS, LENGTHS), other(SESSIONS, LENGTHS))
    assert torch.equal(one.next_item(SESSIONS, LENGTHS), other.next_item(SESSIONS, LENGTHS))
