"""InferenceServer, as its clients know it: models and tasks over Gurney's MAPs, payloads and jobs."""
