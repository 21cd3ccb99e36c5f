"""The map service: registers MAPs, keeps their manifests and names. Owns `maps`."""
