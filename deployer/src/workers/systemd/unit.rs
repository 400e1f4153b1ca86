//! What systemd says of a unit, and what it means.

use zbus::OwnedObjectPath;

use crate::workers::ProcessPhase;

/// A row of `ListUnitsByNames`: name, description, load state, active state, sub state, the unit it follows, its
/// object, the number, kind and object of its job (`org.freedesktop.systemd1(5)`).
pub(super) type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// A unit as it was at one moment.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    /// Its name; not an alias.
    pub(super) id: String,
    /// Its object.
    pub(super) path: OwnedObjectPath,
    /// `loaded`, `not-found`, `masked`, `bad-setting`, `error`…
    pub(super) load: String,
    active: String,
    sub: String,
    job: u32,
}

/// What a service unit says of its process.
#[derive(Debug, Clone, Default)]
pub(super) struct Process {
    /// Its process id; 0: none.
    pub(super) main_pid: u32,
    /// `success`, `exit-code`, `signal`, `start-limit-hit`…
    pub(super) result: String,
    /// How the last process ended: `CLD_EXITED` (1), `CLD_KILLED` (2), `CLD_DUMPED` (3); 0: it has not.
    pub(super) code: i32,
    /// Its exit status, or the signal.
    pub(super) status: i32,
}

/// Where a service unit's processes are, and whose.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// Its cgroup, from the root; empty: it has no process.
    pub(super) cgroup: String,
    /// `User=`; empty: systemd's own.
    pub(super) user: String,
}

impl Unit {
    pub(super) fn read(row: Row) -> Self {
        let (id, _, load, active, sub, _, path, job, ..) = row;
        Self { id, path, load, active, sub, job }
    }

    /// Whether it can be started as far as its file goes.
    pub(super) fn is_loaded(&self) -> bool {
        matches!(self.load.as_str(), "loaded" | "merged")
    }

    /// Whether it has no process, and none will come by itself but by a job that waits.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.active.as_str(), "inactive" | "failed")
    }

    /// Whether systemd counts it as failed; it has no process then.
    pub(super) fn is_failed(&self) -> bool {
        self.active == "failed"
    }

    /// Whether a job waits or runs.
    pub(super) fn has_job(&self) -> bool {
        self.job != 0
    }

    /// Whether it runs, or is about to.
    pub(super) fn is_begun(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading" | "refreshing" | "activating")
    }

    /// Whether it is on its way down.
    pub(super) fn is_stopping(&self) -> bool {
        self.active == "deactivating"
    }

    pub(super) fn phase(&self) -> ProcessPhase {
        match self.active.as_str() {
            // It has no process any more (`RemainAfterExit=`).
            "active" if self.sub == "exited" => ProcessPhase::Failed,
            "active" | "reloading" | "refreshing" => ProcessPhase::Running,
            // Between two tries, too: `auto-restart`.
            "activating" => ProcessPhase::Starting,
            "deactivating" => ProcessPhase::Stopping,
            "inactive" if self.has_job() => ProcessPhase::Starting,
            "inactive" => ProcessPhase::Stopped,
            _ => ProcessPhase::Failed,
        }
    }

    /// As `systemctl status` shows it: "active (running)".
    pub(super) fn state(&self) -> String {
        format!("{} ({})", self.active, self.sub)
    }

    /// systemd's own words.
    pub(super) fn detail(&self, process: &Process) -> String {
        let mut words = self.state();
        if !matches!(process.result.as_str(), "" | "success") {
            words = format!("{words}, {}", process.result);
        }
        match process.code {
            0 => words,
            1 => format!("{words}, exit status {}", process.status),
            _ => format!("{words}, killed by signal {}", process.status),
        }
    }
}

impl Process {
    pub(super) fn pid(&self) -> Option<u32> {
        (self.main_pid != 0).then_some(self.main_pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(load: &str, active: &str, sub: &str, job: u32) -> Unit {
        let path = OwnedObjectPath::try_from("/a").unwrap();
        let text = str::to_owned;
        Unit::read((
            text("web@1.service"),
            String::new(),
            text(load),
            text(active),
            text(sub),
            String::new(),
            path.clone(),
            job,
            String::new(),
            path,
        ))
    }

    #[test]
    fn phases() {
        use ProcessPhase::{Failed, Running, Starting, Stopped, Stopping};
        let cases = [
            ("active", "running", 0, Running),
            ("active", "exited", 0, Failed),
            ("reloading", "reload", 0, Running),
            ("activating", "start", 7, Starting),
            ("activating", "auto-restart", 0, Starting),
            ("deactivating", "stop-sigterm", 7, Stopping),
            ("inactive", "dead", 0, Stopped),
            ("inactive", "dead", 7, Starting),
            ("failed", "failed", 0, Failed),
            ("a later systemd's", "word", 0, Failed),
        ];
        for (active, sub, job, phase) in cases {
            let unit = unit("loaded", active, sub, job);
            assert_eq!(unit.phase(), phase, "{}", unit.state());
            assert!(!(unit.is_gone() && unit.is_begun()), "{}", unit.state());
        }
    }

    #[test]
    fn what_can_be_started() {
        assert!(unit("loaded", "inactive", "dead", 0).is_loaded());
        for load in ["not-found", "masked", "bad-setting", "error", "stub"] {
            assert!(!unit(load, "inactive", "dead", 0).is_loaded(), "{load}");
        }
    }

    #[test]
    fn details() {
        let failed = unit("loaded", "failed", "failed", 0);
        let process = Process { main_pid: 0, result: "exit-code".into(), code: 1, status: 203 };
        assert_eq!(failed.detail(&process), "failed (failed), exit-code, exit status 203");
        let process = Process { result: "signal".into(), code: 2, status: 9, ..Process::default() };
        assert_eq!(failed.detail(&process), "failed (failed), signal, killed by signal 9");
        let runs = Process { main_pid: 7, result: "success".into(), ..Process::default() };
        assert_eq!(
            (unit("loaded", "active", "running", 0).detail(&runs).as_str(), runs.pid()),
            ("active (running)", Some(7))
        );
        assert_eq!(Process::default().pid(), None);
    }
}
