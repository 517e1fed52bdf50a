"""``python -m benchmarks.adversary``."""

from benchmarks.adversary.run import main

main()
