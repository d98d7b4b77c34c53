"""Mixed-precision and range searches: measure what a choice does to the outputs, and what it costs in latency."""
