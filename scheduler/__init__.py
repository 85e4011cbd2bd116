"""Lepton: a cluster scheduler and autoscaler for GPU training and inference."""
