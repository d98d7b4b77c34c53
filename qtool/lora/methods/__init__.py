"""One file a method of adapters, by PEFT's names: what each does to a weight."""
