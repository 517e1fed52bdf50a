"""``python -m benchmarks.deploy``."""

from benchmarks.deploy.run import main

main()
