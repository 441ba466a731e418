"""BERT sentence encoders."""
