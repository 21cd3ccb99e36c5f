"""The payload service: payloads, their files and the claims on them. The only holder of object-store credentials."""
