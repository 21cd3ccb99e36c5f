"""The endpoints: parse, ask, answer."""
