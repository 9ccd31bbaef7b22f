"""A stage of training: start-up, the driver's loop, the collector, the ledger, restarts and evaluation."""
