"""How a run starts: flags, device, network file, ranks, worker processes, folder and log."""
