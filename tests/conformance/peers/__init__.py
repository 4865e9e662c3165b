"""Scripts that let other packages choose what stays, and keep the sets that they chose.

Each ``peers/NAME.py`` has ``sets(root) -> iterator of dict``: it drives the package itself, found
installed or in a checkout ``root``, and says for every set which policy of h2osim it is.
"""
