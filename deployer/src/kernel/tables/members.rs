//! Which workers a service's slot names.

use anyhow::{Context, Result};

use super::Tables;

impl Tables {
    /// The places of a slot's workers: those of the first pool, spares among them, and those of the second.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    pub fn members(&self, slot: u32) -> Result<[Vec<u32>; 2]> {
        let slot = self.entries().slots.get(&slot, 0).with_context(|| format!("reading pool slot {slot}"))?;
        let places: Vec<_> = slot.members.iter().map(|place| u32::from(*place)).collect();
        let first = usize::from(slot.len[0]).min(places.len());
        let end = (first + usize::from(slot.len[1])).min(places.len());
        Ok([places[..first].to_vec(), places[first..end].to_vec()])
    }
}
