"""Reads adapters: PEFT folders, kohya and LyCORIS files, torchtune, GGUF."""
