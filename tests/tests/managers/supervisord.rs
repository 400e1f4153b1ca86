//! supervisord.

use std::{fs, os::unix::net::UnixStream, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use deployer::workers::{ProcessManager, Supervisord};
use deployer_tests::{
    process::Process,
    sandbox::{Place, Sandbox},
};

use super::scene::{Fixture, PORTS, SOON, STOP_WITHIN, at, play};

/// A supervisord with the workers, which it does not start by itself.
pub(crate) struct Real {
    _process: Process,
    socket: std::path::PathBuf,
}

impl Fixture for Real {
    const RESTARTS: bool = true;
    const KILLS: bool = true;

    fn new(sandbox: &Sandbox, worker: &[String], directory: &Path) -> Result<Self> {
        let (at, socket) = (directory.display(), directory.join("s"));
        let (words, count, first) = (worker.join(" "), PORTS.count(), PORTS.start());
        let stop = STOP_WITHIN.as_secs();
        let text = format!(
            "[unix_http_server]\nfile={at}/s\n[supervisord]\nlogfile={at}/log\npidfile={at}/pid\nchildlogdir={at}\n\
             user=root\n[rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [program:web]\ncommand={words} %(process_num)d {at}\nprocess_name=web_%(process_num)d\n\
             numprocs={count}\nnumprocs_start={first}\nautostart=false\nautorestart=true\nstopwaitsecs={stop}\n"
        );
        let config = directory.join("supervisord.conf");
        fs::write(&config, text).context("write supervisord.conf")?;
        let mut command = sandbox.command(Place::Workers, "/usr/bin/supervisord");
        command.arg("-n").arg("-c").arg(config);
        let mut process = Process::start("supervisord", command, &directory.join("out"))?;
        process.wait_ready(SOON, || UnixStream::connect(&socket).is_ok())?;
        Ok(Self { _process: process, socket })
    }

    fn manager(&self) -> Result<Box<dyn ProcessManager>> {
        let manager = Supervisord::new(self.socket.clone(), "web:web_{port}".to_owned(), None, Duration::from_secs(30));
        Ok(Box::new(manager))
    }
}

super::cases::suite!(Real);

#[test]
fn an_unknown_worker() -> Result<()> {
    play::<Real>(async |scene| {
        for result in [scene.manager.check(&[at(8000), at(9000)]).await, scene.manager.start(at(9000)).await] {
            let Err(error) = result else { anyhow::bail!("9000 is known") };
            ensure!(error.to_string().contains("web_9000") && !error.may_come_yet(), "{error}");
        }
        Ok(())
    })
}

#[test]
fn not_there() -> Result<()> {
    play::<Real>(async |scene| {
        let socket = scene.fixture.socket.with_extension("gone");
        let manager = Supervisord::new(socket, "web:web_{port}".to_owned(), None, Duration::from_secs(30));
        let Err(error) = manager.check(&[at(8000)]).await else { anyhow::bail!("reached") };
        ensure!(error.to_string().contains("cannot be reached at") && !error.may_come_yet(), "{error}");
        Ok(())
    })
}
