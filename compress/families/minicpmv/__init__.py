"""MiniCPM-V 2.5: configuration, torch model, component graphs, host runner."""
