//! A wire between two sandboxes' network namespaces.

use std::process::Command;

use anyhow::Result;

use crate::process::run;
use crate::sandbox::Sandbox;

/// The address at the first end.
pub const NEAR: &str = "10.99.0.1";
/// The address at the other.
pub const FAR: &str = "10.99.0.2";

/// Joins two sandboxes. The wire goes with either of them.
pub fn join(near: &Sandbox, far: &Sandbox) -> Result<()> {
    let ip = |words: &[&str]| run(Command::new("ip").args(words)).map(drop);
    let (near, far) = (near.name(), far.name());
    ip(&["-n", near, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", far])?;
    for (netns, at) in [(near, NEAR), (far, FAR)] {
        ip(&["-n", netns, "address", "add", &format!("{at}/24"), "dev", "wire"])?;
        ip(&["-n", netns, "link", "set", "wire", "up"])?;
    }
    Ok(())
}
