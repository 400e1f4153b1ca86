//! The parts of a deploy into a second pool: what is asked before two pools run side by side, before callers are led to
//! the new one, and while both are kept warm. Each part stands alone; the roll puts them in order.

pub mod door;
pub mod gate;
pub mod health;
pub mod memory;
