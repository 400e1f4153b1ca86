//! Connections whose caller is gone: nothing is lost when it is closed.

use tracing::debug;

use super::Tables;
use crate::kernel::diag::Socket;

impl Tables {
    /// Has the programs count neither a cut nor a reset where one of these sockets, workers' ends, is closed with its process.
    /// Where the kernel refuses, both are counted.
    pub fn forgive<'a>(&self, gone: impl IntoIterator<Item = &'a Socket>) {
        let mut entries = self.entries();
        for socket in gone {
            if let Err(error) = entries.gone.insert(socket.cookie, 0, 0) {
                debug!(%error, caller = %socket.peer, "cannot enter a connection whose caller is gone");
                return;
            }
        }
    }
}
