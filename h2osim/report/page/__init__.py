"""The page of ``h2osim report``: one file that a browser opens without a network.

``gather`` computes what is on it, from the replays, optima and measures that every command uses;
``losses`` what each token was worth after its eviction; ``packing`` makes arrays small; ``render``
puts all into the templates beside it, with Vega-Lite, which draws.
"""
