"""The local server: sessions of clicks over HTTP, for the page in the browser and for other clients."""
