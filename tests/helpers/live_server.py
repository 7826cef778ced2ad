"""An application that listens."""

import contextlib
import socket
import threading
import time

import uvicorn


@contextlib.contextmanager
def running(application):
    """The address of the application, served in a thread."""
    # Its own configuration of logging would close the handlers of others.
    config = uvicorn.Config(application, lifespan="on", log_config=None, log_level="critical")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
