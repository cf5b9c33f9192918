"""The machine at hand: threads, processes, clusters, memory. It knows no models."""
