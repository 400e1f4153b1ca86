//! Races and other ways to a worker that experts will try: no connection may reach one that is drained or being
//! restarted, none may be lost, and no drain may end early, or be held by strangers.
//!
//! | what is tried | where |
//! |---|---|
//! | non-blocking connect() while states are published, of many at once, some of which close at once or never look | `storm` |
//! | a caller that is held up inside connect(), before its SYN; or between connect() and its request | `preempted` |
//! | a worker that calls its own port, while up, drained, rolled; and keeps such a connection | `selfcall` |
//! | outgoing connections from the workers' ports; a port that is taken while its worker restarts | `ports` |
//! | callers bound to a device (SO_BINDTODEVICE) | `devices` |
//! | workers on wildcard addresses, dialled by 0.0.0.0, ::, another address of the host | `wildcard` |
//! | TCP Fast Open by sendto(), Multipath TCP, io_uring; connect()s of these kinds that fail | `kinds` |
//! | TCP_FASTOPEN_CONNECT, and its ticket | `preempted`; suite `steer`, `drained` |
//! | what getpeername() shows of all that | suite `steer`, `addresses` |
//! | connect() that is tried again, or elsewhere, on the same socket | suite `steer`, `drained` |
//! | SYNs that wait behind a full accept queue | suite `steer`, `counts` |

mod devices;
mod kinds;
mod ports;
mod preempted;
mod racer;
mod scene;
mod selfcall;
mod storm;
mod wildcard;
