"""``python -m benchmarks.format``."""

from benchmarks.format.run import main

main()
