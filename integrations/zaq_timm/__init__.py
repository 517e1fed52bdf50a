"""The model zoo: the `zaq-quantize` command, its demo, and the models that it ships."""
