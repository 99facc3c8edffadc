"""Architectures of torchvision and transformers, tiny and with random weights."""

from collections.abc import Callable

from torch import nn

from metalearn.torchvision_import import torchvision_module
from tests.zoo.rows import Row, below, given, normal, padding

_TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 10}


def _resnet18() -> nn.Module:
    return torchvision_module("models").resnet18(num_classes=3)


def _resnet_row(*, training: bool) -> Row:
    # Its last maps are 1x1, so that a batch norm sees as many values as there are images: with few of them, or with
    # long steps, there is a kink wherever one looks.
    images = given(normal(5, 3, 8, 8))
    return Row(
        _resnet18, images, training=training, num_inner_steps=1, slow=True, lr=1e-4,
        step_sizes=(1e-4, 3e-5, 1e-5), num_directions=1,
    )  # fmt: skip


def _vision_transformer() -> nn.Module:
    return torchvision_module("models").VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=10, num_classes=3
    )


def _transformers():
    torchvision_module("models")  # beside a build of torch that has other operators, transformers can not import it
    import transformers

    return transformers


def _bert(attention: str) -> nn.Module:
    config = _transformers().BertConfig(
        vocab_size=11, max_position_embeddings=6, attn_implementation=attention, initializer_range=0.4, **_TINY
    )
    return _transformers().BertModel(config)


def _gpt2(attention: str) -> nn.Module:
    config = _transformers().GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        attn_implementation=attention, initializer_range=0.4,
    )  # fmt: skip
    return _transformers().GPT2LMHeadModel(config)


def _attended(generator):
    return (~padding(2, 4)(generator)).long()


SENTENCES = given(input_ids=below(11, 2, 4, first=1), attention_mask=_attended)  # token 0 is the padding, a constant
GENERATED = given(input_ids=below(11, 2, 4), attention_mask=_attended, use_cache=False)


def _language(build: Callable[[str], nn.Module], attention: str, inputs, *, training: bool) -> Row:
    return Row(
        lambda: build(attention), inputs, training=training, draws=training, inert=("*.key.bias",),
        num_inner_steps=1, lr=0.1,
    )  # fmt: skip


ROWS = {
    "ResNet-18": _resnet_row(training=True),
    "ResNet-18, evaluation": _resnet_row(training=False),
    "vision transformer": Row(_vision_transformer, given(normal(3, 3, 8, 8)), num_inner_steps=1),
    **{
        f"{name}, {attention}, {mode}": _language(build, attention, inputs, training=mode == "training")
        for name, build, inputs in (("BERT", _bert, SENTENCES), ("GPT-2", _gpt2, GENERATED))
        for attention in ("sdpa", "eager")
        for mode in ("training", "evaluation")
    },
}
