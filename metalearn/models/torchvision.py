"""The classification models of torchvision by name, with a head of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalearn.errors import UsageError, closest, did_you_mean
from metalearn.models.norms import check_image_shape
from metalearn.torchvision_import import torchvision_module

NORMS = ("batch", "batch_running")
_OURS = {"weights", "num_classes", "progress", "aux_logits", "init_weights"}


class TorchvisionModel(nn.Module):
    """A model of `torchvision.models` whose last classifier layer is replaced by a linear layer of `num_outputs`.

    Grey images are given to all three channels. With `weights`, images in [0, 1] are first normalised as the weights
    were trained. SqueezeNet's classifier is a convolution: in its place the pooled maps go to the linear head.

    Attributes:
        features: torchvision's model, which ends where its last classifier layer was.
        head: the linear layer.

    Example:
        >>> model = TorchvisionModel(input_shape=(3, 32, 32), num_outputs=5, name="resnet18")
        >>> model.head
        Linear(in_features=512, out_features=5, bias=True)

    Reference:
        https://docs.pytorch.org/vision/stable/models.html#classification names the models, their papers and weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        name: str = "resnet18",
        weights: str | None = None,
        norm: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """A model for images of this shape.

        Args:
            input_shape: `(channel, height, width)` of one image, of one or three channels.
            num_outputs: the classes.
            name: of the model, such as `"resnet18"`, `"mobilenet_v3_small"`, `"vit_b_16"`.
            weights: `"DEFAULT"` or the name of a set of weights, which torchvision downloads once; None begins at
                random.
            norm: of models with batch norm: `"batch"` normalises by the batch at hand, also in evaluation, which is
                transductive; `"batch_running"` keeps running statistics for evaluation. None leaves what there is.
            options: arguments of torchvision's builder, such as `{"image_size": 32}` of `vit_b_16`.

        Raises:
            UsageError: for an unknown name, option or set of weights, weights that can not be downloaded, and images
                that the model does not take.
        """
        super().__init__()
        channels, *_ = check_image_shape("TorchvisionModel", input_shape)
        if channels not in (1, 3):
            raise UsageError(f"torchvision's models take images of 1 or 3 channels, got {channels}.")
        found, options = _weights(name, weights), dict(options or {})
        self.features = _built(name, found, options)
        width = _without_classifier(self.features)
        self.name, self.weights, self.norm, self.options = name, None if found is None else found.name, norm, options
        if norm is not None:
            _set_norms(self.features, norm, name=name)
        self._is_normalised = found is not None
        if found is not None:
            preset = found.transforms()
            self.register_buffer("mean", torch.tensor(preset.mean)[:, None, None])
            self.register_buffer("std", torch.tensor(preset.std)[:, None, None])
        self.head = nn.Linear(width, num_outputs)
        self._try(input_shape)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[example, channel, height, width]` -> `[example, num_outputs]`."""
        inputs = inputs.expand(-1, 3, -1, -1)
        if self._is_normalised:
            inputs = (inputs - self.mean) / self.std
        return self.head(self.features(inputs))  # type: ignore[no-any-return]

    def protocol(self) -> dict[str, Any]:
        """What somebody needs to know to compare numbers, as plain data."""
        norms = [part for part in self.features.modules() if isinstance(part, nn.BatchNorm2d)]
        return {
            "model": f"torchvision {self.name}",
            "weights": self.weights,
            "norm": self.norm,
            "transductive": any(not part.track_running_stats for part in norms),
            **({"options": self.options} if self.options else {}),
        }

    def _try(self, input_shape: Sequence[int]) -> None:
        training = self.training
        try:
            with torch.no_grad():
                self.eval()(torch.zeros(2, *input_shape))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"{self.name} does not take images of shape {list(input_shape)} ({reason}). Choose another size of"
                " images, or what the model takes for them (model.options='{image_size: 32}' of vit_b_16)."
            ) from error
        finally:
            self.train(training)


def _weights(name: str, weights: str | None) -> Any:
    """Torchvision's entry for the named weights, None for none; refuses a model or weights that there are not."""
    models = torchvision_module("models")
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(f"torchvision has no classification model {name!r} (model.name). {closest(str(name), known)}")
    if weights is None:
        return None
    entries = models.get_model_weights(name)
    if weights not in entries.__members__:
        raise UsageError(
            f"{name} has no weights {weights!r} (model.weights). {did_you_mean(weights, entries.__members__)}"
        )
    return entries[weights]


def _built(name: str, weights: Any, options: Mapping[str, Any]) -> nn.Module:
    models = torchvision_module("models")
    for option in options:
        if option in _OURS:
            raise UsageError(f"model.options.{option} is not yours to set.")
    # These two have a second output, for training, which few-shot learning has no use for.
    second = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}.get(name, {})
    if weights is None and second:
        second = {**second, "init_weights": True}  # torchvision warns that it will not be by default
    try:
        made: nn.Module = models.get_model(name, weights=weights, **second, **options)
    except (OSError, RuntimeError) as error:
        if weights is None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"The weights {weights.name} of {name} could not be had ({reason}). Download {weights.url} into"
            f" {torch.hub.get_dir()}/checkpoints, or begin at random by model.weights=null."
        ) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} can not be built with model.options={dict(options)} ({error}).") from error
    return made


def _without_classifier(module: nn.Module) -> int:
    """Takes the last layer out of a classification model; the width of what goes into it."""
    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    path, last = layers[-1]
    above, _, own = path.rpartition(".")
    setattr(module.get_submodule(above), own, nn.Identity())
    return last.in_features if isinstance(last, nn.Linear) else last.in_channels


def _set_norms(module: nn.Module, norm: str, *, name: str) -> None:
    if norm not in NORMS:
        raise UsageError(f"Unknown TorchvisionModel norm {norm!r}. {did_you_mean(str(norm), NORMS)}")
    parts = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    if not parts:
        raise UsageError(f"{name} has no batch norm, so norm={norm!r} changes nothing. Leave it out (model.norm=null).")
    for part in parts if norm == "batch" else ():
        part.track_running_stats = False
        part.running_mean = part.running_var = part.num_batches_tracked = None
