"""A run while it is being written: a page on 127.0.0.1, and a view for the terminal."""

from .command import live
from .feed import Feed
from .followed import FollowedRun

__all__ = ["Feed", "FollowedRun", "live"]
