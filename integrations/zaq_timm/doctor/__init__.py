"""`zaq-quantize doctor`: what this machine and its installation can do, and what is missing.

`machine` reads the hardware and measures whether int8 kernels are exact here, `packages` compares
what is installed with what `setup.cfg` accepts, `findings` puts it together.
"""
