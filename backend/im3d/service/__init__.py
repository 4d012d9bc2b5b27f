"""Jobs asked for by messages: the server, the worker that does them, files for other machines."""
