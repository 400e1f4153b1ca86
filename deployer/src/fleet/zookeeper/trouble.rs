//! What the client says of a failure, in the words of the [`Coordinator`](crate::fleet::coordinator::Coordinator).

use zookeeper_client::{Error, MultiWriteError};

use super::Settings;
use crate::fleet::coordinator::{Op, Trouble, Why};

/// What a read failed of: nothing was done in any case.
pub(super) fn reading(settings: &Settings, path: &str, error: &Error) -> Trouble {
    match asking(settings, path, error) {
        Trouble::Unknown(why) => Trouble::Away(why),
        other => other,
    }
}

/// What a request about a path failed of, as a whole.
pub(super) fn asking(settings: &Settings, path: &str, error: &Error) -> Trouble {
    let servers = &settings.servers;
    match error {
        Error::NoAuth => {
            Trouble::Failed(format!("ZooKeeper ({servers}) gives no right to {path}: {}", advice(settings)))
        }
        Error::InvalidAcl => Trouble::Failed(format!(
            "ZooKeeper ({servers}) refuses the access rights wanted for {path}: acl needs a digest, and a digest is user:password"
        )),
        Error::BadArguments(why) => Trouble::Failed(format!("{path} is refused: {why}")),
        Error::NoNode => Trouble::Failed(format!("{path}: there is no node, or none above it")),
        Error::NoChildrenForEphemerals => {
            Trouble::Failed(format!("{path}: the node above it goes with a session, and can have none below it"))
        }
        Error::QuotaExceeded | Error::MarshallingError | Error::Unimplemented | Error::AuthFailed => {
            Trouble::Failed(format!("ZooKeeper ({servers}) refuses what was asked of {path}: {error}"))
        }
        Error::Throttled | Error::NotReadOnly => {
            Trouble::Away(format!("ZooKeeper ({servers}) does not take it: {error}"))
        }
        error => Trouble::Unknown(format!("ZooKeeper ({servers}) was asked about {path}: {error}")),
    }
}

/// What a transaction failed of.
pub(super) fn writing(settings: &Settings, ops: &[Op], error: &MultiWriteError) -> Trouble {
    let (nth, error) = match error {
        MultiWriteError::RequestFailed { source } => return asking(settings, &paths(ops), source),
        MultiWriteError::OperationFailed { index, source } => (*index, source),
    };
    let why = match error {
        Error::NodeExists => Why::Exists,
        Error::NoNode => Why::Missing,
        Error::BadVersion => Why::Version,
        Error::NotEmpty => Why::NotEmpty,
        error => {
            // All of a transaction is refused for one of its steps: nothing was done, whatever it says.
            let path = ops.get(nth).map_or("?", Op::path);
            return match asking(settings, path, error) {
                Trouble::Unknown(why) => Trouble::Failed(why),
                other => other,
            };
        }
    };
    Trouble::Refused { nth, why }
}

fn paths(ops: &[Op]) -> String {
    let paths: Vec<_> = ops.iter().map(Op::path).collect();
    paths.join(", ")
}

fn advice(settings: &Settings) -> String {
    match &settings.digest {
        // The password is nobody's business.
        Some(digest) => format!(
            "it belongs to another digest than that of user {:?}; put the right user:password into the file that `digest` names",
            digest.split(':').next().unwrap_or_default()
        ),
        None => "it belongs to a digest; name the file with its user:password as `digest`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Acl;
    use super::*;
    use std::time::Duration;

    fn settings(digest: Option<&str>) -> Settings {
        let digest = digest.map(str::to_owned);
        Settings { servers: "zk1:2181".to_owned(), session_timeout: Duration::from_secs(10), digest, acl: Acl::Anyone }
    }

    #[test]
    fn no_right_tells_the_user_and_not_the_password() {
        let text = asking(&settings(Some("shop:hunter2")), "/deployer", &Error::NoAuth).to_string();
        assert!(text.contains("/deployer") && text.contains("\"shop\"") && !text.contains("hunter2"), "{text}");
        let text = asking(&settings(None), "/deployer", &Error::NoAuth).to_string();
        assert!(text.contains("name the file"), "{text}");
        let text = format!("{:?}", settings(Some("shop:hunter2")));
        assert!(text.contains("shop") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_lost_connection_leaves_writes_unknown_and_reads_undone() {
        let lost = Error::ConnectionLoss;
        assert!(matches!(asking(&settings(None), "/a", &lost), Trouble::Unknown(_)));
        assert!(matches!(reading(&settings(None), "/a", &lost), Trouble::Away(_)));
        let whole = MultiWriteError::RequestFailed { source: lost };
        assert!(matches!(writing(&settings(None), &[], &whole), Trouble::Unknown(_)));
    }

    #[test]
    fn a_step_is_named_by_its_number() {
        let ops =
            [Op::Check { path: "/a".to_owned(), version: 1 }, Op::Delete { path: "/b".to_owned(), version: None }];
        let of = |source| writing(&settings(None), &ops, &MultiWriteError::OperationFailed { index: 1, source });
        assert_eq!(of(Error::BadVersion), Trouble::Refused { nth: 1, why: Why::Version });
        assert_eq!(of(Error::NotEmpty), Trouble::Refused { nth: 1, why: Why::NotEmpty });
        let Trouble::Failed(text) = of(Error::NoAuth) else { panic!("no right is final") };
        assert!(text.contains("/b"), "{text}");
    }
}
