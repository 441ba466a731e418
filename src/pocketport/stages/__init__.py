"""The road's stages: each one reads what the one before wrote, through the store."""
