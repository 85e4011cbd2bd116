"""The asyncio shell around the core: gRPC, journal, metrics, the decision loop."""
