"""One page about one run: `attvae report`."""
