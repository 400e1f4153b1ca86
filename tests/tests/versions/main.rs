//! Two versions side by side: which requests get which of them, and that no page is ever answered by the other one.

mod browsers;
mod clock;
mod deploy;
mod emergency;
mod failures;
mod held;
mod kept;
mod lanes;
mod lb;
mod orders;
mod reloads;
mod restart;
mod rollback;
mod scene;
mod sessions;
mod supervisord;
