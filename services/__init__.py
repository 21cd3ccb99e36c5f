"""Gurney's services: each a package of its own that knows no other."""
