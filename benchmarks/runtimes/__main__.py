"""``python -m benchmarks.runtimes``."""

from benchmarks.runtimes.run import main

raise SystemExit(main())
