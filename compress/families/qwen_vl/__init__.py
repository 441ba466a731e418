"""The Qwen-VL series: Qwen2-VL, Qwen2.5-VL, Qwen3-VL."""
