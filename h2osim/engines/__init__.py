"""Engines: one replay of one unit under one policy at one budget, in several ways.

:mod:`~h2osim.engines.naive` is the definition; the others are compared with it, every eviction.
"""
