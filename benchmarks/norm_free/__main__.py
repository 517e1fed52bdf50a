"""``python -m benchmarks.norm_free``."""

from benchmarks.norm_free.run import main

main()
