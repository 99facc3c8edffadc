"""The cases of scripts/bench.py, a module each."""
