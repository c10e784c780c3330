"""``losscope live``: the page or the terminal view of a run that is being written, until Ctrl-C."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path

from losscope.landscape import SettingError

from .feed import Feed
from .terminal import follow

__all__ = ["live"]


def live(path: str | Path, *, port: int | None = None, text: bool = False, browse: bool = False) -> None:
    """Follow a run until Ctrl-C: on a page at 127.0.0.1, or on the terminal.

    The page is read-only, reads nothing outside the run folder and writes nothing. Other people who can log in to
    this machine can open it, as anything on 127.0.0.1.

    Args:
        path: the run folder; one in which nothing is yet is waited for.
        port: of the page; None takes a free one from 8642 on.
        text: whether to show it on the terminal, without a server. Where standard output is no terminal, once.
        browse: whether to open the page in a browser.

    Raises:
        RunError: if there is no such folder, or it holds something else.
        SettingError: if the port cannot be had, or the options exclude each other.
    """
    if text and (port is not None or browse):
        raise SettingError("--text shows the run on the terminal: it goes without --port and --open")
    if text:
        follow(Path(path))
        return
    from .server import listen
    from .site import Site

    with listen(port, Site(Feed(Path(path)))) as server:
        print(f"{path} is live at {server.url} (Ctrl-C ends it)", flush=True)
        if browse:
            # One that runs in this terminal returns only when it is left.
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            print()
