//! The decoder: configuration, weights, graph, sampling.
