"""`zaq-quantize run`: a whole zoo of models, data-free and unattended.

The data's way::

    settings (flags, file)  ->  references (names, wildcards, checkpoints, functions)
      ->  a process a model (`worker`, `job`), watched by the `pool` or spread by a `cluster`
      ->  one line a model (`results`), whole or not there
      ->  a page and a CSV (`report`)

In a worker: `models` -> `synthetic` images -> `sensitivity` and `pareto` -> `hosts` -> `measure` ->
`row` -> `exporting` -> `details`.
"""
