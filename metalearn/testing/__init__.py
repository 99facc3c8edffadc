"""Our invariants as checkers, for users' own models, losses, strategies and task sources."""

from metalearn.testing.gradients import FiniteDifferences, GradientReport, assert_close, check_meta_gradient
from metalearn.testing.tasks import TaskReport, check_task

__all__ = ["FiniteDifferences", "GradientReport", "TaskReport", "assert_close", "check_meta_gradient", "check_task"]
