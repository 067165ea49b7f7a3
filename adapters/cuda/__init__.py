"""Adapters on a GPU: which of them lie in which slot, and the kernels that multiply each row by its own.

Nothing here is imported unless the model runs on a GPU: the kernels need Triton.
"""
