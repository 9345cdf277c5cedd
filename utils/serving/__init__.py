"""The local server: clicks over HTTP, for the page in the browser and for other clients."""
