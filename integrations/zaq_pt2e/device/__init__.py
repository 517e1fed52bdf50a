"""What tools for devices share: one int8 graph, whoever writes it, and what a file proves.

Their kernels take int8 tensors of full range from one layer to the next, and nothing else. An
integration of such a tool stands above this package, and adds the tool's own calls.
"""
