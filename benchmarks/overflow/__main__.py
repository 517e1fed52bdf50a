"""``python -m benchmarks.overflow``."""

from benchmarks.overflow.run import main

raise SystemExit(main())
