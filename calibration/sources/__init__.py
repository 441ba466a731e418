"""Where calibration samples come from: rendered text, and the words that it shows."""
