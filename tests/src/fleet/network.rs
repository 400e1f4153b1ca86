//! The wires of a fleet: a bridge in a namespace of its own, and a cable from it to each host.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;

use crate::process::run;
use crate::sandbox::Sandbox;

/// The hub's own address, where ZooKeeper is.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BRIDGE: &str = "br0";
/// A host's end of its cable.
const END: &str = "eth0";

/// The bridge's namespace, in which ZooKeeper runs, too.
#[derive(Clone, Debug)]
pub struct Hub {
    /// Shared with what runs in it.
    pub sandbox: Arc<Sandbox>,
}

impl Hub {
    /// A bridge without hosts. `label`: a sandbox's.
    pub fn new(label: &str) -> Result<Self> {
        let hub = Self { sandbox: Arc::new(Sandbox::new(label)?) };
        hub.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        hub.ip(&["addr", "add", &format!("{HUB}/24"), "dev", BRIDGE])?;
        hub.ip(&["link", "set", BRIDGE, "up"])?;
        Ok(hub)
    }

    /// Lays a cable of this name, at most 15 characters, to a sandbox that has this address then.
    pub fn join(&self, name: &str, sandbox: &Sandbox, address: Ipv4Addr) -> Result<()> {
        let ns = sandbox.name();
        self.ip(&["link", "add", name, "type", "veth", "peer", "name", END, "netns", ns])?;
        self.ip(&["link", "set", name, "master", BRIDGE])?;
        self.ip(&["link", "set", name, "up"])?;
        ip(ns, &["addr", "add", &format!("{address}/24"), "dev", END])?;
        ip(ns, &["link", "set", END, "up"])
    }

    /// Pulls a cable's plug at the hub, or puts it back.
    pub fn plug(&self, name: &str, is_in: bool) -> Result<()> {
        self.ip(&["link", "set", name, if is_in { "up" } else { "down" }])
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        ip(self.sandbox.name(), words)
    }
}

/// Loses all packets between a sandbox and the hub, without a word to either; whom else it reaches, it still does.
pub(super) fn lose_hub(sandbox: &Sandbox, is_lost: bool) -> Result<()> {
    let rules = if is_lost {
        format!(
            "table inet lost {{
  chain in {{ type filter hook input priority 0; ip saddr {HUB} drop; }}
  chain out {{ type filter hook output priority 0; ip daddr {HUB} drop; }}
}}"
        )
    } else {
        "delete table inet lost".to_owned()
    };
    let netns = format!("--net={}", sandbox.netns_path().display());
    // One argument, with lines of its own.
    run(Command::new("nsenter").args([&netns, "nft", &rules])).map(drop)
}

fn ip(netns: &str, words: &[&str]) -> Result<()> {
    run(Command::new("ip").args(["-n", netns]).args(words)).map(drop)
}
