//! A user offers a supervisord of his own, or rewrites files that the daemon reads.
