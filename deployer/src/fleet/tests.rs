//! A fleet of pure machines: [`simulation`] plays it with faults, and the rest looks at single steps.

mod host;
mod simulation;
mod world;
