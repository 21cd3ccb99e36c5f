"""The notifier: forwards what happens to jobs to registered job handlers (webhooks). Owns `handlers`, `deliveries`."""
