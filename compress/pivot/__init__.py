"""Plan and statistics → the pivot: quantized QDQ graphs and the table of their encodings."""
