"""Kernels: operators on plain tensors. dispatch.py chooses between reference.py (torch) and the Triton files."""
