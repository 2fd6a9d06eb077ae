"""Fits the cost model to iterations that a server measured."""
