"""PWLQ in torchao's PT2E (export) quantization."""
