"""MONAI Inference Service, as its clients know it: one MAP, one request at a time, over `POST /v1/run`."""
