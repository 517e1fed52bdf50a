"""`zaq-quantize inspect` and `zaq-quantize compare`: looking at models and results, changing none.

`predict` says what would become of a model, `contents` reads weights and records out of whatever
holds them, `differences` compares two such things layer by layer.
"""
