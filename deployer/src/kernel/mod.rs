//! The kernel: programs, tables, sockets, cgroups. The only module with unsafe code, and the only one that knows aya.

mod bpf;
pub mod btf;
pub mod cgroup;
pub mod clock;
mod counts;
pub mod credentials;
pub mod descriptors;
pub mod diag;
mod events;
pub mod executables;
pub mod family;
pub mod host;
mod links;
mod load;
mod mapping;
pub mod own_ports;
pub mod packets;
mod pair;
pub mod pidfd;
mod pins;
pub mod ports;
pub mod procs;
pub mod reaper;
pub mod tables;
mod trace;
pub mod users;
mod versions;

pub use counts::Counts;
pub use events::Events;
pub(crate) use load::{ARMS, COUNTS_RELATIVES, TELLS_REFUSALS, without};
pub use load::{Attached, Attachment, Programs, attachment, can_load, detach_leftovers};
pub use pair::Pair;
pub use pins::{Survey, is_bpffs, survey};
pub use reaper::{Answer, Ground, Reaper};
pub use tables::{Found, FoundWorker, Tables, address};
pub use trace::{Decision, Decisions, Wanted, Why};
