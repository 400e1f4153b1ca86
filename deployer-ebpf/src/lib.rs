//! What the objects share: reading the kernel's structures.
#![no_std]

pub mod structs;
