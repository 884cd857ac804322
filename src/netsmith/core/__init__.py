"""What every method stands on: tracing, profiling, loading, data, training, artifacts."""
