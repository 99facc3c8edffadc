"""Task sources: where episodes come from."""

from metalearn.tasks.arrays import Arrays
from metalearn.tasks.base import TaskSource
from metalearn.tasks.cifar_fs import CifarFS
from metalearn.tasks.classification import ClassificationSource
from metalearn.tasks.datasets import from_dataset
from metalearn.tasks.function_families import FamilyMixture, FunctionFamily, SineWaves
from metalearn.tasks.gaussian_process import GaussianProcess
from metalearn.tasks.glyphs import Glyphs
from metalearn.tasks.image_folder import ImageFolder
from metalearn.tasks.image_format import ImageFormat
from metalearn.tasks.learn2learn import Learn2Learn, from_taskset
from metalearn.tasks.mixture import Mixture
from metalearn.tasks.omniglot import Omniglot
from metalearn.tasks.regression import Regression
from metalearn.tasks.sinusoid import Sinusoid
from metalearn.tasks.tables import Table
from metalearn.tasks.taskset_view import to_taskset
from metalearn.tasks.user_function import UserFunction

__all__ = [
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
