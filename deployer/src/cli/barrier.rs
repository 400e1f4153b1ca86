//! Barriers of others that a roll or a deploy of this host waits for.

use clap::{Args, builder::NonEmptyStringValueParser};

use crate::fleet::barrier::DoubleBarrierAt;

/// Which.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Barriers {
    /// Wait before the first batch, or the flip, until this node is not in ZooKeeper (Kazoo's Barrier)
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    pub(super) barrier: Option<String>,
    /// Enter this double barrier before that, and leave it at the end, or after the flip (Kazoo's DoubleBarrier)
    #[arg(long, value_name = "PATH", requires = "parties", value_parser = NonEmptyStringValueParser::new())]
    double_barrier: Option<String>,
    /// How many enter the double barrier, this host among them
    #[arg(long, value_name = "NUMBER", requires = "double_barrier")]
    parties: Option<usize>,
}

impl Barriers {
    /// The double one.
    pub(super) fn double(&self) -> Option<DoubleBarrierAt> {
        let (path, parties) = self.double_barrier.clone().zip(self.parties)?;
        Some(DoubleBarrierAt { path, parties })
    }
}
