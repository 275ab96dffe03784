"""The EditAR runtime."""
