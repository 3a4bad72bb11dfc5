"""Official ground truth of benchmarks: files that data and metrics read."""
