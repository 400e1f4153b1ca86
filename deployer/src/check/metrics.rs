//! The port of the metrics' page: free, or the daemon's that runs.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
};

use super::{Finding, ports::takes};
use crate::{
    api::Status,
    kernel::{
        diag::{self, states},
        procs::{self, Process},
    },
};

/// What is at an address; `status`: what the daemon that runs says.
pub(super) fn finding(listen: SocketAddr, status: Option<&Status>) -> Finding {
    let what = format!("metrics.listen {listen}");
    match (holder(listen), status) {
        (Err(error), _) => Finding::warn(what, format!("no telling whether somebody listens there: {error}")),
        (Ok(Some(holder)), Some(status)) if holder.pid == status.pid => {
            Finding::ok(what, format!("the daemon (pid {}) listens there", status.pid))
        }
        (Ok(Some(holder)), _) => Finding::warn(what, format!("{holder} listens there: metrics are not served"))
            .fix("do", "stop that process, or set another [metrics] listen"),
        (Ok(None), Some(status)) => {
            let detail = format!("the daemon (pid {}) does not listen there: the setting is newer than it", status.pid);
            Finding::warn(what, detail).fix("do", "restart the daemon; steering goes on meanwhile")
        }
        (Ok(None), None) => match TcpListener::bind(listen) {
            Ok(_) => Finding::ok(what, "is free"),
            Err(error) => Finding::warn(what, format!("cannot be bound: {error}; metrics would not be served"))
                .fix("do", "set another [metrics] listen"),
        },
    }
}

/// Who listens where that takes the address.
fn holder(listen: SocketAddr) -> std::io::Result<Option<Process>> {
    let all = diag::sockets(states::LISTEN, Some(listen.port()))?;
    // Who listens at every address is in the way of each, and the other way round.
    let is_in_the_way = |at: SocketAddr| takes(at, listen) || takes(listen, at);
    let Some(socket) = all.iter().find(|socket| is_in_the_way(socket.local)) else { return Ok(None) };
    let holders = procs::holding(&BTreeSet::from([socket.inode]));
    let nobody = Process { pid: 0, command: "a process that cannot be seen".to_owned() };
    Ok(Some(holders.into_values().next().unwrap_or(nobody)))
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    fn status(pid: u32) -> Status {
        Status {
            version: String::new(),
            pid,
            attached: true,
            bypassed: false,
            callers: String::new(),
            trouble: Vec::new(),
            self_test: None,
            deferred: Vec::new(),
            services: Vec::new(),
        }
    }

    #[test]
    fn says_whose_the_port_is() {
        let ours = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = ours.local_addr().unwrap();
        let every = SocketAddr::from(([0, 0, 0, 0], at.port()));
        let (me, other) = (status(std::process::id()), status(1));
        for listen in [at, every] {
            assert_eq!(finding(listen, Some(&me)).level, Level::Ok);
            for status in [None, Some(&other)] {
                let found = finding(listen, status);
                let who = format!("(pid {}) listens there: metrics are not served", me.pid);
                assert!(found.level == Level::Warn && found.detail.contains(&who), "{found}");
            }
        }
        drop(ours);
        assert_eq!((finding(at, None).level, finding(at, Some(&me)).level), (Level::Ok, Level::Warn));
        let nobodys = finding("192.0.2.1:9469".parse().unwrap(), None);
        assert!(nobodys.level == Level::Warn && nobodys.detail.contains("cannot be bound"), "{nobodys}");
    }
}
