"""Helpers for every part of the package: errors, files, cores, bundled folders, phrases."""
