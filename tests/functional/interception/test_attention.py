"""Attention: torch's values, second derivatives, vmap, and dropout from a key."""

import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalearn import functionalize, random, tree
from metalearn.testing import assert_close
from tests.functional.interception.inner_loops import D, certify, episodes, gradients, read_out, sequences

LENGTH = 4
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
"""True where nn.MultiheadAttention must not look."""
ENDS = torch.tensor([4, 2, 1, 3])
PADDING = torch.arange(LENGTH) >= ENDS[:, None]


class Attends(nn.Module):
    """Self-attention of projected features `[example, time, 4]` by torch's function."""

    def __init__(self, *, key_heads: int = 2, mask: Any = None, **options: Any) -> None:
        super().__init__()
        self.query, self.memory = nn.Linear(4, 8), nn.Linear(4, 4 * key_heads)
        self.key_heads, self.options = key_heads, options
        self.learned_mask = nn.Parameter(torch.randn(LENGTH, LENGTH)) if isinstance(mask, str) else None
        self.register_buffer("mask", mask if isinstance(mask, Tensor) else None)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (4, 2)).transpose(1, 2)
        key, value = self.memory(x).unflatten(-1, (self.key_heads, 4)).transpose(1, 2).chunk(2, -1)
        mask = self.mask if self.learned_mask is None else self.learned_mask
        enable_gqa = self.key_heads != 4
        return read_out(
            F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=enable_gqa, **self.options), len(x)
        )


class MultiHead(nn.Module):
    """Attention of inputs `[example, time, 4]` to themselves, or to wider ones made of them."""

    def __init__(self, *, masks: dict[str, Tensor] | None = None, call: Any = None, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **{"batch_first": True, **options})
        wide, value = options.get("kdim"), options.get("vdim")
        self.to_key = nn.Linear(4, wide) if wide else nn.Identity()
        self.to_value = nn.Linear(4, value) if value else nn.Identity()
        self.call = call or {}
        for name, mask in (masks or {}).items():
            self.register_buffer(name, mask)
        self.names = tuple(masks or {})

    def forward(self, x: Tensor) -> Tensor:
        first = self.attention.batch_first
        x = x if first else x.transpose(0, 1)
        masks = {name: getattr(self, name) for name in self.names}
        output, weights = self.attention(x, self.to_key(x), self.to_value(x), **masks, **self.call)
        total = read_out(output, output.shape[0 if first else 1], batch_dims=lambda leaf: 0 if first else 1)
        return total if weights is None else total + read_out(weights, len(total))


class OneByOne(nn.Module):
    """Attention of one sequence without an example axis at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([read_out(self.attention(row, row, row)[0][None], 1) for row in x])


class Encodes(nn.Module):
    """A stack on inputs `[example, time, 4]`, with what else it is called with."""

    def __init__(self, stack: nn.Module, **masks: Any) -> None:
        super().__init__()
        self.stack, self.masks = stack, masks

    def forward(self, x: Tensor) -> Tensor:
        return read_out(self.stack(x, **self.masks), len(x))


class Decodes(nn.Module):
    """A decoder, or a whole transformer, that reads its inputs turned round."""

    def __init__(self, stack: nn.Module, **masks: Any) -> None:
        super().__init__()
        self.stack, self.masks = stack, masks

    def forward(self, x: Tensor) -> Tensor:
        return read_out(self.stack(x, x.flip(1), **self.masks), len(x))


def _layer(cls: Any = nn.TransformerEncoderLayer, dropout: float = 0.0, **options: Any) -> nn.Module:
    return cls(4, 2, 4, dropout=dropout, **{"activation": "gelu", "batch_first": True, **options})


def _encoder(dropout: float = 0.0, **options: Any) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(
        _layer(dropout=dropout, **options), 2, norm=nn.LayerNorm(4), enable_nested_tensor=False
    )


def _decoder(dropout: float = 0.0, **options: Any) -> nn.TransformerDecoder:
    return nn.TransformerDecoder(_layer(nn.TransformerDecoderLayer, dropout, **options), 2)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "function": lambda: Attends(key_heads=4),
    "function, causal": lambda: Attends(key_heads=4, is_causal=True),
    "function, scaled": lambda: Attends(key_heads=4, scale=0.3),
    "function, bool mask": lambda: Attends(key_heads=4, mask=~CAUSAL),
    "function, learned mask": lambda: Attends(key_heads=4, mask="learned"),
    "function, grouped": lambda: Attends(key_heads=2),
    "function, one key head": lambda: Attends(key_heads=1, is_causal=True),
    "function, dropout": lambda: Attends(key_heads=4, dropout_p=0.3),
    "function, dropout, causal": lambda: Attends(key_heads=4, dropout_p=0.3, is_causal=True, scale=0.3),
    "function, dropout, bool mask, grouped": lambda: Attends(key_heads=2, dropout_p=0.3, mask=~CAUSAL),
    "function, dropout, learned mask": lambda: Attends(key_heads=4, dropout_p=0.3, mask="learned"),
    "multi-head": MultiHead,
    "multi-head, without weights": lambda: MultiHead(call={"need_weights": False}),
    "multi-head, weights of every head": lambda: MultiHead(call={"average_attn_weights": False}),
    "multi-head, time first": lambda: MultiHead(batch_first=False),
    "multi-head, no bias": lambda: MultiHead(bias=False),
    "multi-head, other widths": lambda: MultiHead(kdim=3, vdim=5),
    "multi-head, other widths, without weights": lambda: MultiHead(kdim=3, vdim=5, call={"need_weights": False}),
    "multi-head, biases and a zero": lambda: MultiHead(add_bias_kv=True, add_zero_attn=True),
    "multi-head, biases, zero, masks": lambda: MultiHead(
        add_bias_kv=True, add_zero_attn=True, masks={"attn_mask": CAUSAL, "key_padding_mask": PADDING}
    ),
    "multi-head, masks, without weights": lambda: MultiHead(
        masks={"attn_mask": CAUSAL, "key_padding_mask": PADDING}, call={"need_weights": False}
    ),
    "multi-head, a mask for every head": lambda: MultiHead(
        masks={"attn_mask": torch.linspace(-1, 1, 8 * LENGTH**2, dtype=D).reshape(8, LENGTH, LENGTH)}
    ),
    "multi-head, causal": lambda: MultiHead(
        masks={"attn_mask": CAUSAL}, call={"is_causal": True, "need_weights": False}
    ),
    "multi-head, no example axis": OneByOne,
    "multi-head, dropout": lambda: MultiHead(dropout=0.3),
    "multi-head, dropout, without weights": lambda: MultiHead(
        dropout=0.3, masks={"key_padding_mask": PADDING}, call={"need_weights": False}
    ),
    "encoder layer": lambda: Encodes(_layer()),
    "encoder layer, norm first": lambda: Encodes(_layer(norm_first=True), src_mask=CAUSAL, is_causal=True),
    "encoder layer, evaluation": lambda: Encodes(_layer(dropout=0.3), src_key_padding_mask=PADDING).eval(),
    "encoder layer, dropout": lambda: Encodes(_layer(dropout=0.3), src_key_padding_mask=PADDING),
    "encoder": lambda: Encodes(_encoder(norm_first=True), mask=CAUSAL),
    "encoder, nested tensors, evaluation": lambda: Encodes(
        nn.TransformerEncoder(_layer(dropout=0.3), 2), src_key_padding_mask=PADDING
    ).eval(),
    "encoder, dropout": lambda: Encodes(_encoder(dropout=0.3), mask=CAUSAL, src_key_padding_mask=PADDING),
    "decoder": lambda: Decodes(_decoder(norm_first=True), tgt_mask=CAUSAL, memory_key_padding_mask=PADDING.flip(1)),
    "decoder, dropout": lambda: Decodes(_decoder(dropout=0.3), tgt_mask=CAUSAL, tgt_is_causal=True),
    "transformer, dropout": lambda: Decodes(nn.Transformer(4, 2, 1, 1, 4, 0.3, "gelu", batch_first=True)),
}
KEYED = {name for name in MODULES if "dropout" in name}


def _module(name: str, *, quiet: bool = False) -> nn.Module:
    """The module; a quiet one does not drop, and takes no other path than it would in training."""
    torch.manual_seed(2)
    module = MODULES[name]().double()
    for part in module.modules() if quiet else ():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
        if isinstance(part, Attends):
            part.options.pop("dropout_p", None)
    return module


@pytest.mark.parametrize("name", MODULES)
def test_second_order_and_under_vmap(name: str) -> None:
    certify(MODULES[name], episodes(4, LENGTH, 4), num_directions=1)


@pytest.mark.parametrize("name", MODULES)
def test_equals_torch_where_nothing_is_dropped(name: str) -> None:
    module, x = _module(name, quiet=True), sequences(4, LENGTH, 4)
    model = functionalize(module)
    assert_close(model(model.params, model.buffers, x)[0], module(x), tolerance=1e-12)
    grads = gradients(lambda params: model(params, model.buffers, x)[0], model.params)
    params = dict(module.named_parameters())
    expected = torch.autograd.grad((module(x) + 0.5).sin().sum(), list(params.values()), materialize_grads=True)
    assert_close(grads, dict(zip(params, expected, strict=True)), tolerance=1e-10)


class Weights(nn.Module):
    """The weights of attention, as dropped: what attention gives on one-hot values."""

    def __init__(self, *, p: float, **options: Any) -> None:
        super().__init__()
        self.p, self.options = p, options

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        values = torch.eye(key.shape[-2], dtype=query.dtype).expand(*key.shape[:-1], -1)
        return F.scaled_dot_product_attention(query, key, values, dropout_p=self.p, **self.options)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 2.0}, {"attn_mask": ~torch.eye(20, 30, dtype=torch.bool)}]
)
def test_dropout_keeps_what_torch_would_without_it_scaled(options: dict[str, Any]) -> None:
    model = functionalize(Weights(p=0.3, **options))
    query, key = sequences(2, 3, 20, 5), sequences(2, 3, 30, 5, seed=1)
    whole = Weights(p=0.0, **options)(query, key)
    dropped = model({}, model.buffers, query, key)[0]
    kept = dropped != 0
    assert_close(dropped[kept], whole[kept] / 0.7, tolerance=1e-12)
    assert abs(kept[whole != 0].double().mean().item() - 0.7) < 0.03


@pytest.mark.parametrize("name", sorted(KEYED))
def test_dropout_draws_the_same_in_a_loop_and_under_vmap(name: str) -> None:
    module, x = _module(name), sequences(4, LENGTH, 4)
    model, keys = functionalize(module), random.key(torch.arange(3))
    call = lambda key: model(model.params, {**model.buffers, "rng": key}, x)[0]  # noqa: E731
    looped = torch.stack([call(key) for key in keys])
    assert torch.equal(looped[0], call(keys[0]))
    assert_close(torch.vmap(call)(keys), looped, tolerance=1e-13)
    if module.training:
        assert (looped[0] - looped[1]).norm() > 1e-3
        assert (looped[1] - looped[2]).norm() > 1e-3
    else:
        assert torch.equal(looped[0], looped[1])


def test_grouped_keys_equal_repeated_ones_also_with_dropout() -> None:
    model = functionalize(Weights(p=0.3, enable_gqa=True))
    query, key = sequences(2, 6, 5, 3), sequences(2, 2, 4, 3, seed=1)
    grouped = model({}, model.buffers, query, key)[0]
    repeated = model({}, model.buffers, query, key.repeat_interleave(3, 1))[0]
    assert_close(grouped, repeated, tolerance=1e-13)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("bool_mask", [True, False])
def test_rows_that_see_nothing_give_zero_as_in_torch(bool_mask: bool, p: float) -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    given = mask if bool_mask else torch.zeros(2, 3, dtype=D).masked_fill(~mask, -math.inf)
    model = functionalize(Weights(p=p, attn_mask=given))
    query, key = sequences(1, 2, 4), sequences(1, 3, 4, seed=1)
    output = model({}, model.buffers, query, key)[0]
    assert torch.equal(output[:, 1], torch.zeros(1, 3, dtype=D))
    assert torch.equal(Weights(p=0.0, attn_mask=given)(query, key)[:, 1], output[:, 1])
    grad = torch.func.grad(lambda query: model({}, model.buffers, query, key)[0].square().sum())(query)
    assert torch.equal(grad[:, 1], torch.zeros(1, 4, dtype=D))
    assert grad[:, 0].isfinite().all()


@pytest.mark.parametrize("need_weights", [True, False])
def test_an_example_that_is_all_padding_gives_what_torch_gives(need_weights: bool) -> None:
    padding = PADDING.clone()
    padding[1] = True
    torch.manual_seed(0)
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    model, x = functionalize(module), sequences(4, LENGTH, 4)
    options = {"key_padding_mask": padding, "need_weights": need_weights}
    got, expected = model(model.params, model.buffers, x, x, x, **options)[0], module(x, x, x, **options)
    for a, b in zip(tree.tensors(got), tree.tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert got[0][1].isnan().all() == need_weights  # torch gives NaN on one of its two ways and 0 on the other


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # which torch itself takes
def test_the_paths_without_gradients_are_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module("encoder, nested tensors, evaluation")
    model, x = functionalize(module), sequences(4, LENGTH, 4)
    with torch.no_grad():
        fused = module.stack(x, src_key_padding_mask=PADDING)

    def taken(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a path without gradients")

    for name in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention", "_nested_tensor_from_mask"):
        monkeypatch.setattr(torch, name, taken)
    stack = functionalize(module.stack)
    with torch.no_grad():
        with pytest.raises(AssertionError, match="a path without gradients"):
            module(x)  # as it is outside
        model(model.params, model.buffers, x)
        exact = stack(stack.params, stack.buffers, x, src_key_padding_mask=PADDING)[0]
    torch.testing.assert_close(exact[~PADDING], fused[~PADDING], rtol=1e-10, atol=1e-10)


def test_half_precision_is_rounded_as_in_torch() -> None:
    query, key, value = (sequences(2, 3, 6, 4, seed=s).bfloat16() for s in range(3))

    class Of(nn.Module):
        def forward(self, *inputs: Tensor, p: float = 0.0) -> Tensor:
            return F.scaled_dot_product_attention(*inputs, dropout_p=p)

    model = functionalize(Of())
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(model({}, model.buffers, query, key, value)[0], expected, rtol=0, atol=0.01)
    dropped, exact = (
        model({}, model.buffers, *(x.to(dtype) for x in (query, key, value)), p=0.5)[0] for dtype in (torch.bfloat16, D)
    )
    assert dropped.dtype == torch.bfloat16
    torch.testing.assert_close(dropped.double(), exact, rtol=0.01, atol=0.01)


def test_no_thread_sees_another_choice_of_kernels() -> None:
    # torch's switch between kernels is global, so that threads which set it and set it back undo each other's choice.
    class Of(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    model, x = functionalize(Of()), sequences(2, 4, 4)

    def enabled() -> tuple[bool, bool]:
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()

    def call(_: int) -> tuple[bool, bool]:
        model({}, model.buffers, x)
        return enabled()

    interval, before = sys.getswitchinterval(), enabled()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(call, range(400))) == {before}
    finally:
        sys.setswitchinterval(interval)


def test_misuse_is_refused_as_in_torch() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, p: float) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, ~CAUSAL, is_causal=True, dropout_p=p)

    model = functionalize(Both())
    for p in (0.0, 0.5):
        with pytest.raises(RuntimeError, match="Explicit attn_mask should not be set when is_causal"):
            model({}, model.buffers, sequences(2, 4, 4), p)
    model = functionalize(Weights(p=1.5))
    with pytest.raises(ValueError, match="between 0 and 1"):
        model({}, model.buffers, sequences(2, 4, 4), sequences(2, 4, 4))
