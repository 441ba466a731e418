"""Published configurations by preset name, one JSON file each."""
