"""Benchmarks: a folder for each question, run from the checkout.

python -m benchmarks            what can be asked
python -m benchmarks.accuracy --help
"""
