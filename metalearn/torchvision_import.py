"""torchvision, imported only when something of it is used, also beside a build of torch that it was not made for."""

import importlib
import sys
from typing import Any

import torch

_declared: list[torch.library.Library] = []  # schemas live as long as the object that declared them


def torchvision_module(name: str) -> Any:
    """The module `torchvision.<name>`, such as `"datasets"` or `"transforms.v2"`.

    torchvision's wheels for CUDA fail to import beside a CPU build of torch: two operators have no schema. Declaring
    them is enough for data sets, transforms and models.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module(f"torchvision.{name}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for each in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
        del sys.modules[each]  # the half-imported package
    schemas = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _declared.append(schemas)
    return importlib.import_module(f"torchvision.{name}")
