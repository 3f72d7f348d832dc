"""The GPU's room: Triton unified attention with a tree bias, timing by events, the worker."""
