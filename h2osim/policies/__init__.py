"""Eviction policies: declarations, roles, parameters, and translations for the engines."""
