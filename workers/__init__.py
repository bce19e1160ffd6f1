"""One process per device: claim, load, generate, store, commit."""
