"""What the Python tests share: tiny models, a float64 reference of the whole mathematics, a server to talk to."""
