"""Meta-learning algorithms: one file each, all on the same seams."""

from metalearn.algorithms.anil import ANIL
from metalearn.algorithms.base import Algorithm
from metalearn.algorithms.boil import BOIL
from metalearn.algorithms.cavia import CAVIA
from metalearn.algorithms.fine_tuning import PretrainedFineTuned
from metalearn.algorithms.imaml import IMAML
from metalearn.algorithms.maml import MAML
from metalearn.algorithms.maml_plus_plus import MAMLPlusPlus
from metalearn.algorithms.meta_curvature import MetaCurvature
from metalearn.algorithms.meta_sgd import MetaSGD
from metalearn.algorithms.pretraining import PretrainedPrototypes
from metalearn.algorithms.proto_maml import ProtoMAML
from metalearn.algorithms.protonet import ProtoNet
from metalearn.algorithms.r2d2 import R2D2
from metalearn.algorithms.reptile import Reptile

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "IMAML",
    "MAML",
    "R2D2",
    "Algorithm",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaSGD",
    "PretrainedFineTuned",
    "PretrainedPrototypes",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
]
