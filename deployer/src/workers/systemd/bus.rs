//! Questions to systemd over a message bus, each with a time limit.

use std::{
    io::{Error, ErrorKind},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::{sync::Mutex, time::timeout};
use zbus::{
    Connection, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Type as Signed,
    connection, fdo, message::Type,
};

use super::{
    MANAGER,
    job::Job,
    unit::{Place, Process, Row, Unit},
};
use crate::workers::{
    ManagerError,
    peer::{self, PeerError},
};

/// Longest wait for a connection, or an answer. systemd answers at once; one that takes longer is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const UNIT_INTERFACE: &str = "org.freedesktop.systemd1.Unit";
const SERVICE_INTERFACE: &str = "org.freedesktop.systemd1.Service";

/// Where systemd is, and the connection to there once it is made.
pub(super) struct Link {
    /// `None`: the system bus.
    address: Option<String>,
    within: Duration,
    open: Mutex<Option<Connection>>,
}

/// A connection that answered a moment ago.
pub(super) struct Bus<'a> {
    link: &'a Link,
    connection: Connection,
}

/// What came of the question for a job.
pub(super) enum Asked<'a> {
    /// systemd has taken it on.
    Job(Box<Job<'a>>),
    /// No such unit is loaded, or one that it needs cannot be.
    Unknown(ManagerError),
}

/// systemd's no to a unit, before it is put into an error.
pub(super) struct Refusal {
    pub(super) said: String,
    pub(super) hint: &'static str,
}

impl Link {
    pub(super) fn new(address: Option<String>) -> Self {
        Self { address, within: ANSWER_WITHIN, open: Mutex::default() }
    }

    /// The bus, for messages.
    fn at(&self) -> String {
        self.address.clone().unwrap_or_else(|| "the system bus".to_owned())
    }

    /// The connection that is open, if it still answers, or a new one. Nothing is asked of systemd that changes anything.
    pub(super) async fn open(&self, tried: &str) -> Result<Bus<'_>, ManagerError> {
        let mut open = self.open.lock().await;
        if let Some(connection) = open.take().filter(|connection| !connection.is_closed()) {
            let bus = Bus { link: self, connection };
            match bus.call(MANAGER_PATH, "org.freedesktop.DBus.Peer", "Ping", &(), tried).await {
                Ok(_) => {
                    *open = Some(bus.connection.clone());
                    return Ok(bus);
                }
                // Who hangs on one connection hangs on the next.
                Err(error) if hangs(&error) => return Err(error.harmless()),
                // The bus was restarted since, or systemd was.
                Err(_) => {}
            }
        }
        let connection = self.connect(tried).await?;
        let bus = Bus { link: self, connection };
        // Without it systemd tells nobody of the ends of jobs (sd_bus: `Subscribe`).
        bus.call(MANAGER_PATH, MANAGER_INTERFACE, "Subscribe", &(), tried).await.map_err(ManagerError::harmless)?;
        *open = Some(bus.connection.clone());
        Ok(bus)
    }

    async fn connect(&self, tried: &str) -> Result<Connection, ManagerError> {
        let builder = match &self.address {
            None => connection::Builder::system(),
            Some(address) => match self.trusted(address, tried).await? {
                Some(stream) => connection::Builder::unix_stream(stream),
                None => connection::Builder::address(address.as_str()),
            },
        };
        let source = match timeout(self.within, builder.build()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => cause(error),
            Err(_) => self.no_answer(),
        };
        Err(self.unreachable(tried, source))
    }

    /// A connection to an address that is one socket: to a bus that root or the daemon's user has opened.
    async fn trusted(&self, address: &str, tried: &str) -> Result<Option<UnixStream>, ManagerError> {
        let is_one = |name: &&str| !name.contains([',', ';', '%']);
        let connected = if let Some(path) = address.strip_prefix("unix:path=").filter(is_one) {
            peer::connect(Path::new(path)).await
        } else if let Some(name) = address.strip_prefix("unix:abstract=").filter(is_one) {
            peer::connect_abstract(name)
        } else {
            return Ok(None);
        };
        let connected = connected.and_then(|stream| stream.into_std().map_err(PeerError::Connect));
        connected.map(Some).map_err(|error| match error {
            PeerError::Connect(source) => self.unreachable(tried, source),
            PeerError::Stranger(source) => {
                let (at, tried) = (self.at(), tried.to_owned());
                ManagerError::Unreachable { manager: MANAGER, at, tried, hint: peer::HINT, source }
            }
        })
    }

    fn unreachable(&self, tried: &str, source: Error) -> ManagerError {
        let (at, hint) = (self.at(), hint(&source));
        ManagerError::Unreachable { manager: MANAGER, at, tried: tried.to_owned(), hint, source }
    }

    fn unanswered(&self, tried: &str, source: Error) -> ManagerError {
        let (at, hint) = (self.at(), hint(&source));
        ManagerError::Unanswered { manager: MANAGER, at, tried: tried.to_owned(), hint, source }
    }

    fn no_answer(&self) -> Error {
        Error::new(ErrorKind::TimedOut, format!("no answer within {} s", self.within.as_secs_f32()))
    }

    fn garbled(&self, tried: &str, why: String) -> ManagerError {
        ManagerError::Garbled { manager: MANAGER, at: self.at(), tried: tried.to_owned(), why }
    }

    fn error(&self, tried: &str, error: zbus::Error) -> ManagerError {
        let refused =
            |said: String, hint| ManagerError::Refused { manager: MANAGER, tried: tried.to_owned(), said, hint };
        match error {
            zbus::Error::InputOutput(error) => self.unanswered(tried, Error::new(error.kind(), error.to_string())),
            zbus::Error::MethodError(name, said, _) => {
                refused(said.unwrap_or_else(|| name.to_string()), method_hint(&name))
            }
            zbus::Error::FDO(error) => match *error {
                fdo::Error::ServiceUnknown(said) | fdo::Error::NameHasNoOwner(said) => {
                    self.unreachable(tried, Error::new(ErrorKind::NotConnected, said))
                }
                fdo::Error::NoReply(said) | fdo::Error::Disconnected(said) | fdo::Error::Timeout(said) => {
                    self.unanswered(tried, Error::new(ErrorKind::ConnectionReset, said))
                }
                fdo::Error::AccessDenied(said) | fdo::Error::InteractiveAuthorizationRequired(said) => refused(
                    said,
                    "Run the daemon as root, or allow its user org.freedesktop.systemd1.manage-units (polkit)",
                ),
                other => refused(other.to_string(), "Read systemd's log: journalctl -b _PID=1"),
            },
            other => self.garbled(tried, other.to_string()),
        }
    }
}

impl Bus<'_> {
    /// One call, and its answer.
    async fn call<B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
        tried: &str,
    ) -> Result<Message, ManagerError>
    where
        B: serde::Serialize + DynamicType,
    {
        let call = self.connection.call_method(Some(NAME), path, Some(interface), method, body);
        match timeout(self.link.within, call).await {
            Ok(answer) => answer.map_err(|error| self.link.error(tried, error)),
            Err(_) => Err(self.link.unanswered(tried, self.link.no_answer())),
        }
    }

    fn read<T: DeserializeOwned + Signed>(&self, answer: &Message, tried: &str) -> Result<T, ManagerError> {
        answer.body().deserialize().map_err(|error| self.link.garbled(tried, error.to_string()))
    }

    /// The units of these names, loaded if they are not.
    pub(super) async fn units(&self, names: &[String], tried: &str) -> Result<Vec<Unit>, ManagerError> {
        let answer = self.call(MANAGER_PATH, MANAGER_INTERFACE, "ListUnitsByNames", &names, tried).await;
        let rows: Vec<Row> = self.read(&answer.map_err(ManagerError::harmless)?, tried)?;
        Ok(rows.into_iter().map(Unit::read).collect())
    }

    /// One look at a unit.
    pub(super) async fn unit(&self, name: &str, tried: &str) -> Result<Unit, ManagerError> {
        let found = self.units(&[name.to_owned()], tried).await?;
        found.into_iter().next().ok_or_else(|| self.link.garbled(tried, format!("it lists no unit for {name}")))
    }

    async fn property<T>(&self, unit: &Unit, interface: &str, name: &str, tried: &str) -> Result<T, ManagerError>
    where
        T: TryFrom<OwnedVariant>,
        T::Error: std::fmt::Display,
    {
        let path = unit.path.as_str();
        let answer = self.call(path, "org.freedesktop.DBus.Properties", "Get", &(interface, name), tried).await;
        let value: OwnedVariant = self.read(&answer.map_err(ManagerError::harmless)?, tried)?;
        T::try_from(value).map_err(|error| self.link.garbled(tried, format!("{name} is of another type: {error}")))
    }

    /// What a unit says of its process.
    pub(super) async fn process(&self, unit: &Unit, tried: &str) -> Result<Process, ManagerError> {
        Ok(Process {
            main_pid: self.property(unit, SERVICE_INTERFACE, "MainPID", tried).await?,
            result: self.property(unit, SERVICE_INTERFACE, "Result", tried).await?,
            code: self.property(unit, SERVICE_INTERFACE, "ExecMainCode", tried).await?,
            status: self.property(unit, SERVICE_INTERFACE, "ExecMainStatus", tried).await?,
        })
    }

    /// Where a unit's processes are, and whose.
    pub(super) async fn place(&self, unit: &Unit, tried: &str) -> Result<Place, ManagerError> {
        Ok(Place {
            cgroup: self.property(unit, SERVICE_INTERFACE, "ControlGroup", tried).await?,
            user: self.property(unit, SERVICE_INTERFACE, "User", tried).await?,
        })
    }

    /// Why a unit that is not loaded is not.
    pub(super) async fn refusal_of(&self, unit: &Unit, tried: &str) -> Result<Refusal, ManagerError> {
        let (_, why): (String, String) = self.property(unit, UNIT_INTERFACE, "LoadError", tried).await?;
        let (what, hint) = match unit.load.as_str() {
            "not-found" => (
                "there is no such unit",
                "Make `manager.unit` name a template that is installed (systemctl cat UNIT), then: systemctl daemon-reload",
            ),
            "masked" => ("it is masked", "Unmask it: systemctl unmask UNIT"),
            _ => ("its file is wrong", "Correct it (systemd-analyze verify UNIT), then: systemctl daemon-reload"),
        };
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        Ok(Refusal { said: format!("{}: {what}{why}", unit.id), hint })
    }

    /// Listens for the ends of a unit's jobs.
    async fn listen(&self, unit: &Unit, tried: &str) -> Result<MessageStream, ManagerError> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(NAME)
            .interface(MANAGER_INTERFACE)
            .member("JobRemoved")
            .arg(2, unit.id.as_str())
            .build();
        let listen = async { MessageStream::for_match_rule(rule?, &self.connection, None).await };
        match timeout(self.link.within, listen).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.link.error(tried, error).harmless()),
            Err(_) => Err(self.link.unreachable(tried, self.link.no_answer())),
        }
    }

    /// Asks for a job, in the place of any that waits.
    pub(super) async fn ask(&self, method: &str, unit: &Unit, tried: &str) -> Result<Asked<'_>, ManagerError> {
        let signals = self.listen(unit, tried).await?;
        let body = &(unit.id.as_str(), "replace");
        let call = self.connection.call_method(Some(NAME), MANAGER_PATH, Some(MANAGER_INTERFACE), method, body);
        match timeout(self.link.within, call).await {
            Ok(Ok(answer)) => {
                // It said yes, whatever it said besides.
                let job: OwnedObjectPath = self.read(&answer, tried).map_err(ManagerError::begun)?;
                Ok(Asked::Job(Box::new(Job::new(self, unit.id.clone(), job, signals))))
            }
            Ok(Err(error)) => {
                let unknown = matches!(&error, zbus::Error::MethodError(name, ..) if name.ends_with(".NoSuchUnit"));
                let error = self.link.error(tried, error);
                if unknown { Ok(Asked::Unknown(error)) } else { Err(error) }
            }
            Err(_) => Err(self.link.unanswered(tried, self.link.no_answer())),
        }
    }

    /// Has systemd forget how often a unit was started: what an operator asks for is no crash loop
    /// (`StartLimitBurst=`: by default 5 starts in 10 s, and a roll back is one more).
    pub(super) async fn forget_failures(&self, unit: &Unit, tried: &str) -> Result<(), ManagerError> {
        let body = &(unit.id.as_str(),);
        match self.call(MANAGER_PATH, MANAGER_INTERFACE, "ResetFailedUnit", body, tried).await {
            // It need not be loaded, and the start says best what is wrong with it.
            Ok(_) | Err(ManagerError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Refusal {
    pub(super) fn into_error(self, tried: &str) -> ManagerError {
        ManagerError::Refused { manager: MANAGER, tried: tried.to_owned(), said: self.said, hint: self.hint }
    }
}

fn hangs(error: &ManagerError) -> bool {
    matches!(error, ManagerError::Unanswered { source, .. } if source.kind() == ErrorKind::TimedOut)
}

/// Why there is no connection.
fn cause(error: zbus::Error) -> Error {
    match error {
        zbus::Error::Connection(error, _) | zbus::Error::InputOutput(error) => {
            let shared: Arc<Error> = error;
            Error::new(shared.kind(), shared.to_string())
        }
        other => Error::other(other.to_string()),
    }
}

/// What to do about a bus that does not work.
fn hint(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "Is dbus installed and running (systemctl status dbus)? Compare `manager.bus`",
        ErrorKind::ConnectionRefused => "The socket is there but nobody listens: start dbus",
        ErrorKind::PermissionDenied => "Run the daemon as a user that may write to the bus's socket",
        ErrorKind::TimedOut => "It is there but hangs: look at the processes of dbus and systemd, and at the disk",
        ErrorKind::NotConnected => "systemd is not on this bus: is `manager.bus` that of another host or container?",
        _ => "Has the bus, or systemd, been restarted? Look at its log: journalctl -u dbus",
    }
}

/// What to do about systemd's no.
fn method_hint(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "NoSuchUnit" => "Make `manager.unit` name a template that is installed: systemctl cat UNIT",
        "UnitMasked" => "Unmask it: systemctl unmask UNIT",
        "LoadFailed" | "BadUnitSetting" => {
            "Correct its file (systemd-analyze verify UNIT), then: systemctl daemon-reload"
        }
        "OnlyByDependency" => "The unit has RefuseManualStart= or RefuseManualStop=: take that out",
        "TransactionIsDestructive" | "ShuttingDown" => "systemd is shutting the host down",
        "InvalidArgs" => "Make `manager.unit` a unit's name, \"web@{port}.service\"",
        _ => "Read systemd's log: journalctl -b _PID=1",
    }
}
