"""Whisper: speech in, text out, by an encoder and a decoder that attends to it."""
