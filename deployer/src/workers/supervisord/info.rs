//! What supervisord says of a process, and what it means.

use crate::workers::{
    ProcessPhase,
    xmlrpc::{Value, short},
};

/// supervisord's own states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Stopped,
    Starting,
    Running,
    Backoff,
    Stopping,
    Exited,
    Fatal,
    Unknown,
}

/// What getProcessInfo says.
#[derive(Debug)]
pub(super) struct Info {
    /// `group:name`.
    pub(super) name: String,
    pub(super) state: State,
    pub(super) pid: Option<u32>,
    ever_started: bool,
    pub(super) detail: String,
}

impl State {
    fn read(code: i64) -> Result<Self, String> {
        Ok(match code {
            0 => Self::Stopped,
            10 => Self::Starting,
            20 => Self::Running,
            30 => Self::Backoff,
            40 => Self::Stopping,
            100 => Self::Exited,
            200 => Self::Fatal,
            1000 => Self::Unknown,
            _ => {
                return Err(format!("`state` is {code}, which is no state of supervisord's"));
            }
        })
    }
}

impl Info {
    /// Reads an entry of getProcessInfo or getAllProcessInfo; the error says what is wrong with it.
    pub(super) fn read(value: &Value) -> Result<Self, String> {
        let state = State::read(value.int("state")?)?;
        let pid = u32::try_from(value.int("pid")?).map_err(|_| "`pid` is no process id".to_owned())?;
        let error = value.text("spawnerr")?;
        let detail = match state {
            State::Exited | State::Backoff | State::Fatal if !error.is_empty() => short(error),
            State::Exited => format!("exit status {}", value.int("exitstatus")?),
            _ => short(value.text("description")?),
        };
        Ok(Self {
            name: format!("{}:{}", value.text("group")?, value.text("name")?),
            state,
            pid: (pid != 0).then_some(pid),
            ever_started: value.int("start")? != 0,
            detail,
        })
    }

    /// Whether there is no process. supervisord forgets the process id when it has reaped it, so a state without one
    /// means just that; UNKNOWN (it could not signal the process) may still have one.
    pub(super) fn gone(&self) -> bool {
        self.pid.is_none() && matches!(self.state, State::Stopped | State::Exited | State::Fatal | State::Unknown)
    }

    /// Whether it stays as it is unless somebody asks.
    pub(super) fn settled(&self) -> bool {
        match self.state {
            State::Stopped => self.ever_started,
            State::Exited => false,
            _ => true,
        }
    }

    pub(super) fn phase(&self) -> ProcessPhase {
        match self.state {
            State::Stopped => ProcessPhase::Stopped,
            State::Starting | State::Backoff => ProcessPhase::Starting,
            State::Running => ProcessPhase::Running,
            State::Stopping => ProcessPhase::Stopping,
            State::Exited | State::Fatal | State::Unknown => ProcessPhase::Failed,
        }
    }
}
