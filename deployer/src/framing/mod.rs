//! Whether the last answer on a kept-alive connection is *complete*: HTTP/1.x framing (RFC 9112, section 6) of the bytes
//! between callers and workers, as they go over the loopback device while a roll lasts.
//!
//! `packet` reads packets, `stream` puts one direction in order, `head` and `body` know HTTP/1, `tls` knows TLS from other bytes, `http1` puts them
//! together for one direction, `connection` holds both against each other, `table` has all connections, `watch` is the
//! thread that feeds it. Only the last one does any input or output.
//!
//! It is always safe to say that a connection is unknown: it holds its worker's drain then. To say complete wrongly
//! loses a user's request. So whatever RFC 9112 leaves to the recipient's mercy is unknown here.

mod body;
mod connection;
mod head;
mod http1;
mod packet;
mod stream;
mod table;
mod tls;
mod verdict;
mod watch;

pub use self::{
    verdict::{Framing, Kind, Seen, What, Why},
    watch::FramingWatch,
};
