//! This host as one of a fleet.

mod local;
