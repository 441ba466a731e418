"""Plain language models: Llama, Mistral, Qwen2, Qwen3, MiniCPM, Gemma 3, SmolLM3."""
