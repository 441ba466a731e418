"""MiniCPM-V 1.0 to 4.5: configuration, torch model, component graphs, host runner."""
