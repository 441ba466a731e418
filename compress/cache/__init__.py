"""A key-value cache in integers: planned, written into the graphs, and used as a float one."""
