"""The patches staged for upstream: their series, their proof and how they are applied.

Nothing here imports torch or SGLang; SGLang runs only in child processes, on a copy of its source.
"""
