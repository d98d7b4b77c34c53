"""One folder a runtime: where Q/DQ go for it, what it runs on integers, how its models are run and verified."""
