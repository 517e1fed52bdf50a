"""`zaq-quantize doctor`: what this machine and its installation can do, and what is missing.

`machine` reads the hardware, `packages` compares what is installed with what `setup.cfg` accepts,
`kernels` measures whether int8 kernels are exact here, `findings` puts it together.
"""
