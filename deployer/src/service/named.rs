//! Which worker an operator means.

use std::{net::SocketAddr, sync::Arc};

use super::{Service, Worker};
use crate::api::At;

/// Why no worker is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNamed {
    /// It is a spare.
    #[error(
        "{at} is a spare of {service}: a roll starts it, uses it and retires it; it is not drained or enabled by hand"
    )]
    Spare {
        /// The spare.
        at: SocketAddr,
        /// Its service.
        service: String,
    },
    /// Several workers have the port.
    #[error("{port} is the port of {} workers of {service}; name one by its address: {}", all.len(), listed(all))]
    Several {
        /// The port.
        port: u16,
        /// The service.
        service: String,
        /// The workers.
        all: Vec<SocketAddr>,
    },
    /// No worker is there.
    #[error("{service} has no worker {}; it has {}", place(at), listed(all))]
    None {
        /// What was asked for.
        at: At,
        /// The service.
        service: String,
        /// The workers that it has: current ones.
        all: Vec<String>,
    },
}

fn place(at: &At) -> String {
    match at {
        At::Port(port) => format!("on port {port}"),
        At::Address(at) => format!("at {at}"),
    }
}

fn listed(all: &[impl ToString]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl Service {
    /// The worker that an operator names.
    ///
    /// # Errors
    /// Several workers have the port, or none.
    pub fn named(&self, at: At) -> Result<&Arc<Worker>, NotNamed> {
        let service = self.config.name.clone();
        let found: Vec<_> = self.pools.iter().flatten().filter(|worker| at.is(worker.at)).collect();
        match found[..] {
            [worker] => return Ok(worker),
            [] => {}
            _ => {
                let all = found.iter().map(|worker| worker.at).collect();
                return Err(NotNamed::Several { port: at.port(), service, all });
            }
        }
        if let Some(spare) = self.spares.iter().find(|spare| at.is(spare.at)) {
            return Err(NotNamed::Spare { at: spare.at, service });
        }
        let all =
            self.workers().iter().map(|worker| shortest(worker.at, self.members().map(|other| other.at)).to_string());
        Err(NotNamed::None { at, service, all: all.collect() })
    }

    /// The shortest name of a worker that is no other's.
    #[must_use]
    pub fn name_of(&self, worker: &Worker) -> At {
        shortest(worker.at, self.members().map(|other| other.at))
    }
}

/// A port, where no other has it.
fn shortest(at: SocketAddr, all: impl Iterator<Item = SocketAddr>) -> At {
    let is_alone = all.filter(|other| other.port() == at.port()).count() < 2;
    if is_alone { At::Port(at.port()) } else { At::Address(at) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_lists_addresses() {
        let all = vec!["127.0.0.1:8000".parse().unwrap(), "127.0.0.4:8000".parse().unwrap()];
        let error = NotNamed::Several { port: 8000, service: "web".into(), all: all.clone() };
        let expected = "8000 is the port of 2 workers of web; name one by its address: 127.0.0.1:8000 127.0.0.4:8000";
        assert_eq!(error.to_string(), expected);
        let none = NotNamed::None { at: At::Port(1), service: "web".into(), all: vec!["8000".into(), "8001".into()] };
        assert_eq!(none.to_string(), "web has no worker on port 1; it has 8000 8001");
        assert_eq!(shortest(all[0], all.iter().copied()), At::Address(all[0]));
        assert_eq!(shortest(all[0], all[..1].iter().copied()), At::Port(8000));
    }
}
