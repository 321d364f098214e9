"""Architectures in the DSL: their configs and the names of their weights."""
