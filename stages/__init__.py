"""The pipeline: one module a DVC stage, each also a command line of its own."""
