"""Tables, figures and files of results.

``frames`` turns a result into rows and records, ``best`` sums up a sweep, ``terminal`` and
``pages`` make tables, ``figures`` and ``heatmap`` make figures, and ``files`` saves both. Nothing
heavy is imported before it is used: rich for tables, matplotlib for figures, pandas and
pyarrow for rows and files.
"""
