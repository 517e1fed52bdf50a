"""What the demo's table and page say beside the numbers."""

CALIBRATION_IMAGES = 512
CHANNELS = "weights per output channel, activations per tensor"
TENSORS = "weights and activations per tensor"
EVALUATION = "599 held-out images, a third of scikit-learn's handwritten digits"
LEAD = (
    "A small depthwise separable network on handwritten digits, {images} of them never seen in "
    "training. With one grid an output channel, 4-bit weights keep most of its accuracy; with one "
    "grid a tensor, PWLQ's keep more of it than uniform ones of the same multiplier width, most at "
    "3 bits; at equal stored bits uniform ones are as good here. "
    "The checkpoint in this folder is {method} with {weights}-bit multiplications, {stored} bits "
    "stored a weight, and {activations}-bit activations."
)
PROTOCOL = {
    "first_last": "like all other layers; the network's own input at 8 bits",
    "residual_adds": "there are none",
    "symmetry": "weights and activations asymmetric",
    "granularity": CHANNELS,
    "calibration": f"{CALIBRATION_IMAGES} training images, drawn by the seed, for activation "
    "ranges (top-10 median) and bias correction",
    "quantized model": "simulated in float",
}

FLOAT_LEVELS = "float, since int8 cannot tell them apart: PWLQ is meant for 6 bits and fewer"


HOST_NAMES = {
    "fx": "converted by torch.ao FX, run on its int8 kernels",
    "pt2e": "converted by torchao PT2E, its integer graph run operator by operator",
}
SAFE = (
    "add two products in 16 bits on this processor, which saturates; no pair of these levels does "
    "(overflow='pairs', the default)"
)
UNSAFE = "chosen without regard to it (overflow='allowed'), and these saturate here"
