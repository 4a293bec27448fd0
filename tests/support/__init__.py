"""What the Python tests share: tiny models, a float64 reference, a server to talk to."""
