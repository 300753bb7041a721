"""Report of a run: one self-contained HTML page, and ``report.json`` with every number on it. Imports no torch.

``run_data`` reads a run folder. The modules from ``slices`` to ``summary`` turn its arrays into plain dictionaries of
numbers, the content of ``report.json``. The ``sections_*`` modules and ``charts`` lay these out, ``page`` renders HTML
and ``make`` writes both files. The page is made from the content of ``report.json`` alone, so that no number on it is
missing there.
"""
