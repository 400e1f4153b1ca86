//! The kernel: programs, tables, sockets, cgroups. The only module with unsafe code, and the only one that knows aya.

pub mod btf;
pub mod cgroup;
pub mod diag;
pub mod executables;
pub mod host;
mod load;
mod mapping;
pub mod procs;
pub mod tables;

pub use load::{Attachment, Programs, attachment, can_load};
pub use tables::Tables;
