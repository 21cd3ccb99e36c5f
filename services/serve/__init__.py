"""`gurney serve`: one or several services in a process of their own, each with its own user at NATS."""
