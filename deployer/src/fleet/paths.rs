//! Where things are in ZooKeeper, below `[fleet] connect`'s path and the fleet's name.

/// What hosts say of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mark {
    /// Its new pool is up and warm, both lanes are served, and it can flip. Ephemeral.
    Ready,
    /// It flips at the instant, whatever comes.
    Confirmed,
    /// It had confirmed, and does not flip any more.
    Disarmed,
    /// It has flipped.
    Flipped,
    /// It serves the former version again.
    Back,
    /// It has no other pool left.
    Retired,
    /// It cannot do what is asked, or its new version is ill.
    Failed,
    /// It has rolled its workers.
    Rolled,
}

impl Mark {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::Confirmed,
        Self::Disarmed,
        Self::Flipped,
        Self::Back,
        Self::Retired,
        Self::Failed,
        Self::Rolled,
    ];

    /// The node in which the hosts are.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Confirmed => "confirmed",
            Self::Disarmed => "disarmed",
            Self::Flipped => "flipped",
            Self::Back => "back",
            Self::Retired => "retired",
            Self::Failed => "failed",
            Self::Rolled => "rolled",
        }
    }
}

/// Paths of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: String,
}

impl Paths {
    /// Below this node: `/deployer/shop`.
    #[must_use]
    pub fn new(root: &str) -> Self {
        Self { root: root.trim_end_matches('/').to_owned() }
    }

    /// Everything of the fleet.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Who is meant to be a member; persistent.
    #[must_use]
    pub fn roster(&self) -> String {
        format!("{}/roster", self.root)
    }

    /// Who is there; ephemeral.
    #[must_use]
    pub fn hosts(&self) -> String {
        format!("{}/hosts", self.root)
    }

    /// All of a service but its server sets.
    #[must_use]
    pub fn service(&self, service: &str) -> String {
        format!("{}/services/{service}", self.root)
    }

    /// In which phase a service is; see [`super::state::FleetState`].
    #[must_use]
    pub fn state(&self, service: &str) -> String {
        format!("{}/state", self.service(service))
    }

    /// Who drives it: the lowest number.
    #[must_use]
    pub fn driver(&self, service: &str) -> String {
        format!("{}/driver", self.service(service))
    }

    /// Who did what; persistent and numbered.
    #[must_use]
    pub fn log(&self, service: &str) -> String {
        format!("{}/log", self.service(service))
    }

    /// What hosts say of all epochs.
    #[must_use]
    pub fn epochs(&self, service: &str) -> String {
        format!("{}/epochs", self.service(service))
    }

    /// What hosts say of an epoch.
    #[must_use]
    pub fn epoch(&self, service: &str, epoch: u64) -> String {
        format!("{}/{epoch:010}", self.epochs(service))
    }

    /// Who says this of an epoch.
    #[must_use]
    pub fn marks(&self, service: &str, epoch: u64, mark: Mark) -> String {
        format!("{}/{}", self.epoch(service, epoch), mark.name())
    }

    /// Who serves the version that is active.
    #[must_use]
    pub fn active_set(&self, service: &str) -> String {
        format!("{}/serversets/{service}/active", self.root)
    }

    /// Who serves a version, current or not.
    #[must_use]
    pub fn version_set(&self, service: &str, version: &str) -> String {
        format!("{}/serversets/{service}/versions/{version}", self.root)
    }
}
