"""The local server: clicks over HTTP, for the page in the browser and for other clients."""


def __getattr__(name: str) -> object:
    """Import `show` when it is asked for: most modules do without what it needs."""
    if name == "show":
        from utils.serving.notebook import show

        return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
