"""Files on disk: untrusted ones are read safely, and each is written completely or not at all."""
