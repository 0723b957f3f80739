"""Replays a request trace through the real policy code and its rivals. Pure: no torch, no SGLang."""
