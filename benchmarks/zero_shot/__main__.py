"""``python -m benchmarks.zero_shot``."""

from benchmarks.zero_shot.run import main

main()
