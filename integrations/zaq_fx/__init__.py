"""PWLQ in torch.ao's FX graph mode quantization."""
