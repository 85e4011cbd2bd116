"""Executors make plans true: local processes, Kubernetes."""
