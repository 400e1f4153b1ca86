//! Two versions side by side: which requests get which of them, and that no page is ever answered by the other one.

mod browsers;
mod deploy;
mod held;
mod lb;
mod rollback;
mod sessions;
mod supervisord;
