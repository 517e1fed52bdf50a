"""`zaq-quantize run`: a whole zoo of models, data-free and unattended.

The data's way::

    settings (flags, file)  ->  references (names, wildcards, checkpoints, functions)
      ->  a process a model (`worker`, `job`), watched by the `pool` or spread by a `cluster`
      ->  one line a model (`results`), whole or not there
      ->  a page and a CSV (`report`, `page`)

In a worker: `models` -> `images` -> `widths` -> `hosts` -> `measure` -> `exporting` -> `details`.
"""
