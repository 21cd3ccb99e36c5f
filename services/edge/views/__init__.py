"""Views by noun: parse, ask the owner, respond. A view decides nothing."""
