"""``python -m benchmarks.field``."""

from benchmarks.field.run import main

raise SystemExit(main())
