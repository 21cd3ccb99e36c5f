"""Runs hosted models."""
