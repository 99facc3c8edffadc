"""`check_transformation` in parts: the form, the purity, the derivatives, and the ways to take them."""

from metalearn.testing.transformations.check import TransformationReport, check_transformation
from metalearn.testing.transformations.rows import TransformationRow

__all__ = ["TransformationReport", "TransformationRow", "check_transformation"]
