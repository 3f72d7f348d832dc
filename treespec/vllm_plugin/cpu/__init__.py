"""The CPU's room: attention over the CPU cache layout, the runner's tail, the worker."""
