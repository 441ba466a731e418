"""Where models come from: every published layout, read defensively into one `Source`."""
