"""Files of weights alone: safetensors, sharded folders, GGUF."""
