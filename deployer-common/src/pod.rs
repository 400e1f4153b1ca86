//! `aya::Pod` for the tables' entries.
#![expect(unsafe_code, reason = "Pod is an unsafe trait, and the orphan rule asks for its impls here")]

use crate::{
    endpoint::Endpoint,
    layout::{Frontend, ServiceCount, Slot, Unsteered, UnsteeredKey, WorkerAddr, WorkerCount},
    protect::Protected,
    reap::{Ends, Target},
};

// SAFETY: repr(C), Copy, no padding (asserted beside each type), every bit pattern is valid.
unsafe impl aya::Pod for Endpoint {}
// SAFETY: as above.
unsafe impl aya::Pod for Frontend {}
// SAFETY: as above.
unsafe impl aya::Pod for Slot {}
// SAFETY: as above.
unsafe impl aya::Pod for WorkerAddr {}
// SAFETY: as above.
unsafe impl aya::Pod for WorkerCount {}
// SAFETY: as above.
unsafe impl aya::Pod for ServiceCount {}
// SAFETY: as above.
unsafe impl aya::Pod for UnsteeredKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Unsteered {}
// SAFETY: as above.
unsafe impl aya::Pod for Ends {}
// SAFETY: as above.
unsafe impl aya::Pod for Target {}
// SAFETY: repr(C), no padding (asserted), any bits are a value.
unsafe impl aya::Pod for Protected {}
