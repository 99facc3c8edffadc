"""Regression of functions: the families they are drawn from, and the tasks `Regression` and `Sinusoid`."""
