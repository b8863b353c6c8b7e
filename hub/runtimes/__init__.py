"""Where the model answers without this package: an endpoint, ONNX Runtime."""
