"""Tool calls: schemas, tags, grammars, and what a client is shown of them."""
