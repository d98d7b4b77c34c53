"""float16 and bfloat16: into them, and back to float32."""
