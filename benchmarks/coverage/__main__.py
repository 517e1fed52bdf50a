"""``python -m benchmarks.coverage``."""

from benchmarks.coverage.run import main

raise SystemExit(main())
