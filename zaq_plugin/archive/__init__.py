"""Files for devices as they are sent: int8 weights as codes, entropy coded; all else compressed.

`pack` writes an archive of a `.onnx`, `.pte` or `.tflite` file; `unpack` makes the file of it
again, bit for bit, with nothing but numpy and the standard library:

    print(archive.pack("model.pte", "model.pte.zaq"))
    archive.unpack("model.pte.zaq", "model.pte")
"""

from zaq_plugin.archive.files import Packed, pack, unpack
from zaq_plugin.archive.readers import Codes, Plane, Weight, find_reader, kinds

__all__ = ["Codes", "Packed", "Plane", "Weight", "find_reader", "kinds", "pack", "unpack"]
