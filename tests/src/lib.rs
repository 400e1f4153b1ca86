//! The end-to-end harness: a real kernel, real nginx, real supervisord, real Python workers, in a network namespace and
//! a cgroup of their own.
//!
//! A test builds a [`sandbox::Sandbox`] first (so that it is dropped last), then the parts it needs:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use deployer_tests::{app::App, load::Load, nginx::{Nginx, Upstream}, sandbox::Sandbox, supervisor::{Options, Supervisor}};
//! let sandbox = Sandbox::new("example")?;
//! let app = App::new(&sandbox, &["v1", "v2"])?;
//! let supervisor = Supervisor::start(&sandbox, &app, Options::ports(8000..=8007))?;
//! supervisor.wait_up()?;
//! supervisor.warm()?;
//! let nginx = Nginx::start(&sandbox, &Upstream::workers(8000..=8007, ""))?;
//! let load = Load { rate: 300.0, ..Load::new("run1") }.start(&sandbox)?;
//! std::thread::sleep(std::time::Duration::from_secs(10));
//! let report = load.stop()?;
//! assert_eq!(report.failed, 0, "{report}");
//! assert!(nginx.error_lines()?.is_empty());
//! # Ok(()) }
//! ```

pub mod api;
pub mod app;
pub mod browser;
pub mod capture;
pub mod client;
pub mod crash;
pub mod crowd;
pub mod daemon;
pub mod dial;
pub mod disk;
pub mod fleet;
pub mod haproxy;
pub mod holder;
pub mod http;
pub mod journal;
pub mod link;
pub mod load;
pub mod nginx;
pub mod pace;
pub mod pages;
pub mod probe;
pub mod process;
pub mod prometheus;
pub mod report;
pub mod rig;
pub mod rollout;
pub mod sandbox;
pub mod side_by_side;
pub mod site;
pub mod stage;
pub mod streams;
pub mod supervisor;
pub mod systemd;
pub mod tls;
pub mod varnish;
pub mod visitors;
pub mod zookeeper;
