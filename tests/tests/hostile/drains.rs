//! A user holds connections, sockets and tickets, so that drains do not end.
