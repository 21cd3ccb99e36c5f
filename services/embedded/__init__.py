"""The embedded mode: one process hosts every service, a real nats-server runs as its child."""
