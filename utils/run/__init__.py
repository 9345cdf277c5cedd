"""Start of a run: flags, device, network file, ranks, worker processes, folder and log."""
