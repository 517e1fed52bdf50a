"""``python -m benchmarks.speed``."""

from benchmarks.speed.run import main

main()
