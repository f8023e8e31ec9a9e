"""Deployment: ONNX export, program.json and bundles."""
