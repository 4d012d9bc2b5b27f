"""Jobs requested by messages: the server, the worker that does them, files of clients on other machines."""
