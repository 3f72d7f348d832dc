"""A draft distilled from the target itself: the answer to "I have no draft for my model".

What trains and generates (`model`, `generate`, `train`, `acceptance`) needs only torch and safetensors.
"""
