"""Adapters on a GPU: how they get there, which of them lie in which slot, and the kernels that multiply each
row by its own.

The kernels need Triton: what uses them is imported only where `available.py` says so.
"""
