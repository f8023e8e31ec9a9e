"""Files for use: ONNX, program.json and the bundle."""
