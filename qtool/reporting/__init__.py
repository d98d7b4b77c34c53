"""What is known about a quantized model beside its float model, and the forms in which it is told."""
