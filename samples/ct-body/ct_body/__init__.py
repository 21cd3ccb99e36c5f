"""Separates air, soft tissue and bone in a CT series by Hounsfield units."""
