"""The REST service for clients: authenticates, validates, asks the owner over NATS, answers. Owns the tokens."""
