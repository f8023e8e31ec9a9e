"""ONNX files as torch modules: read safely, one module or function for every operator, the same outputs.

==========================  ==========================================================================================
`amc.onnx_import.read`      a file, checked: regular, not too large, no code of others, no 8-bit operators
`amc.onnx_import.build`     from the file's graph to an `OnnxModel`, on one example input
`amc.onnx_import.layers`    operators with weights, as torch's layers
`amc.onnx_import.tensors`   operators without weights, on tensors
`amc.onnx_import.windows`   pooling, and convolutions whose kernels are computed
`amc.onnx_import.moves`     operators that move elements
`amc.onnx_import.resize`    Resize and Upsample
`amc.onnx_import.holders`   operators that hold sizes, as modules, whose sizes follow pruning
`amc.onnx_import.sizes`     the same on sizes and other small values, which are numbers in Python, not tensors
`amc.onnx_import.module`    the module that runs an ONNX graph step by step
==========================  ==========================================================================================
"""

from amc.onnx_import.build import build_model, check_example, operator_table, supported_operators
from amc.onnx_import.module import OnnxModel
from amc.onnx_import.read import OnnxGraph, read_graph

__all__ = [
    "OnnxGraph",
    "OnnxModel",
    "build_model",
    "check_example",
    "operator_table",
    "read_graph",
    "supported_operators",
]
