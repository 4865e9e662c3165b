"""Sweeps: grids of policy configurations over many traces, resumable."""
