"""Replays a request trace through the real policy and its rivals. Pure: no torch, no SGLang."""
