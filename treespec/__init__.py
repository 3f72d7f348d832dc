"""treespec: lossless speculative decoding over token trees.

The library (trees, verification, growth, cost) imports torch and numpy only; everything that touches
vLLM 0.15.0 is in `treespec.vllm_plugin`.
"""

__version__ = "0.1.0"
