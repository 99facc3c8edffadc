"""torchvision beside any build of torch, and only when it is used."""

import subprocess
import sys

import pytest

from metalearn.torchvision_import import torchvision_module


@pytest.mark.parametrize(("name", "attribute"), [("datasets", "CIFAR100"), ("transforms.v2", "RandomCrop")])
def test_a_module_is_imported_in_a_new_process(name: str, attribute: str) -> None:
    code = (
        "from metalearn.torchvision_import import torchvision_module as module\n"
        f"assert module('{name}') is module('{name}'); print(module('{name}').{attribute}.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == attribute, done.stderr


def test_a_module_that_is_not_there_is_an_import_error() -> None:
    with pytest.raises(ImportError, match=r"torchvision\.nothing"):
        torchvision_module("nothing")
