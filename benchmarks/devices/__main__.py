"""``python -m benchmarks.devices``."""

from benchmarks.devices.run import main

main()
