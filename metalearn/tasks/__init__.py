"""Task sources: where episodes come from."""

from metalearn.tasks.base import TaskSource
from metalearn.tasks.cifar_fs import FC100, CifarFS
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.functions.families import FamilyMixture, FunctionFamily, SineWaves
from metalearn.tasks.functions.gaussian_process import GaussianProcess
from metalearn.tasks.functions.regression import Regression
from metalearn.tasks.functions.sinusoid import Sinusoid
from metalearn.tasks.functions.user_function import UserFunction
from metalearn.tasks.glyphs import Glyphs
from metalearn.tasks.images.folder import ImageFolder
from metalearn.tasks.images.format import ImageFormat
from metalearn.tasks.interop.datasets import from_dataset
from metalearn.tasks.interop.learn2learn import Learn2Learn, from_taskset
from metalearn.tasks.interop.taskset_view import to_taskset
from metalearn.tasks.mini_imagenet import MiniImageNet
from metalearn.tasks.mixture import Mixture
from metalearn.tasks.omniglot import Omniglot
from metalearn.tasks.tables.arrays import Arrays
from metalearn.tasks.tables.reading import Table

__all__ = [
    "FC100",
    "Arrays",
    "CifarFS",
    "ClassificationSource",
    "FamilyMixture",
    "FunctionFamily",
    "GaussianProcess",
    "Glyphs",
    "ImageFolder",
    "ImageFormat",
    "Learn2Learn",
    "MiniImageNet",
    "Mixture",
    "Omniglot",
    "Regression",
    "SineWaves",
    "Sinusoid",
    "Table",
    "TaskSource",
    "UserFunction",
    "from_dataset",
    "from_taskset",
    "to_taskset",
]
