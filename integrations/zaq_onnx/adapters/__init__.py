"""Runtimes behind one small face: is it there, does it load a file, what does it answer, on what.

Nothing here imports torch or the rest of `zaq_onnx` but where a runtime's own adapter must, so that
a process that tries one runtime starts quickly and loads no other.
"""
