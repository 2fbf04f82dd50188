"""The decoder written once as an ONNX graph, and its dialects."""
