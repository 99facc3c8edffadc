"""Our invariants as checkers, for users' own models, losses, strategies and task sources."""

from metalearn.testing.agreement import check_agreement
from metalearn.testing.gradients import FiniteDifferences, GradientReport, assert_close, check_meta_gradient
from metalearn.testing.stateless import StatelessReport, check_stateless
from metalearn.testing.tasks import TaskReport, check_task
from metalearn.testing.transformations import TransformationReport, check_transformation
from metalearn.testing.transformations.rows import TransformationRow

__all__ = [
    "FiniteDifferences",
    "GradientReport",
    "StatelessReport",
    "TaskReport",
    "TransformationReport",
    "TransformationRow",
    "assert_close",
    "check_agreement",
    "check_meta_gradient",
    "check_stateless",
    "check_task",
    "check_transformation",
]
