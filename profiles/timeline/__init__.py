"""One request on a device from loading to the last token: time and memory, before anything is compiled."""
