"""Gurney runs medical AI applications; this package is the kernel that its services and clients share."""
