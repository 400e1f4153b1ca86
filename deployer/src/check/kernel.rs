//! What the kernel must have.

use std::{fs, io, path::Path};

use rustix::thread::{MembarrierQuery, membarrier_query};

use super::Finding;
use crate::kernel::{
    Loaded,
    btf::Structs,
    can_load, cgroup, diag,
    features::{self, Missing},
    host,
    reaper::Reaper,
    vmlinux, without,
};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const OPTMEM: &str = "/proc/sys/net/core/optmem_max";
const LEAST_OPTMEM: u64 = 4096;
const NOHZ_FULL: &str = "/sys/devices/system/cpu/nohz_full";

pub(super) fn findings() -> Vec<Finding> {
    let nohz_full = processors(&fs::read_to_string(NOHZ_FULL).unwrap_or_default());
    let mut found = vec![
        release(&rustix::system::uname().release().to_string_lossy(), &features::missing(), features::sets_retval()),
        btf(Path::new(BTF)),
        cgroup2(cgroup::root()),
        barrier(
            membarrier_query().contains(MembarrierQuery::GLOBAL),
            std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1),
            nohz_full.as_deref(),
        ),
    ];
    found.extend(nohz_full.map(note));
    found.push(cookie(host::netns_cookie()));
    found.push(sock_diag(diag::sockets(diag::states::LISTEN, None)));
    let blob = vmlinux().unwrap_or_default();
    let types = Structs::parse(&blob);
    let (loaded, has) = (can_load(), |feature: fn(&Structs<'_>) -> bool| types.as_ref().is_some_and(feature));
    let counts_relatives = loaded.as_ref().is_ok_and(|loaded| loaded.counts_relatives);
    found.push(programs(loaded));
    found.push(crashes(has(features::arms), counts_relatives));
    found.push(refusals(has(features::tells_refusals)));
    found.extend(fs::read_to_string(OPTMEM).ok().and_then(|text| storage(&text)));
    found.push(reaper(Reaper::load().map(drop)));
    found
}

/// What a kernel can do counts, not its release: distributions bring later features to earlier releases.
fn release(name: &str, missing: &[Missing], sets_retval: bool) -> Finding {
    let what = "kernel";
    if !missing.is_empty() {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        return Finding::fail(what, format!("{name} lacks what steering needs: {}", missing.join("; ")))
            .fix("do", "run Linux 5.15 or later, or a distribution's kernel that has these features");
    }
    if !sets_retval {
        let detail = format!(
            "in {name} a connect hook cannot choose the error (bpf_set_retval; Linux 6.1 has it): `policy = \"refuse\"` works \
             by sending the connection to port 0"
        );
        return Finding::warn(what, detail);
    }
    Finding::ok(what, format!("{name} has what steering needs (tried, whatever its release)"))
}

fn btf(path: &Path) -> Finding {
    match fs::metadata(path) {
        Ok(_) => Finding::ok("BTF", format!("the kernel describes its types in {}", path.display())),
        Err(error) => Finding::fail("BTF", format!("{}: {error}", path.display()))
            .fix("do", "run a kernel built with CONFIG_DEBUG_INFO_BTF=y"),
    }
}

fn cgroup2(root: io::Result<std::path::PathBuf>) -> Finding {
    match root {
        Ok(root) => Finding::ok("cgroup v2", format!("mounted at {}", root.display())),
        Err(error) => Finding::fail("cgroup v2", error.to_string())
            .fix("run", "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"),
    }
}

/// With `nohz_full` processors the kernel leaves MEMBARRIER_CMD_GLOBAL out of the answer to the query, too.
fn barrier(there: bool, one_processor: bool, nohz_full: Option<&str>) -> Finding {
    let needed_for = "it tells when every connect() that saw the former tables has ended";
    match (there, nohz_full) {
        (true, _) if one_processor => Finding::warn(
            "membarrier",
            "there is one processor, so it returns at once, and a connect() that was preempted inside the hook is not \
             waited for",
        ),
        (true, _) => Finding::ok("membarrier", needed_for),
        (false, Some(processors)) => Finding::fail(
            "membarrier",
            format!("the kernel refuses it because processors {processors} run with nohz_full; {needed_for}"),
        )
        .fix("do", "boot without nohz_full="),
        (false, None) => Finding::fail("membarrier", format!("the kernel has none; {needed_for}"))
            .fix("do", "run a kernel built with CONFIG_MEMBARRIER=y, and allow the call in seccomp filters"),
    }
}

/// The kernel writes `(null)` where it was built for nohz_full and booted without.
fn processors(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text != "(null)").then(|| text.to_owned())
}

fn note(processors: String) -> Finding {
    Finding::warn("nohz_full", format!("processors {processors} run without ticks; grace periods take longer there"))
}

fn cookie(cookie: io::Result<u64>) -> Finding {
    let what = "network namespace cookie";
    match cookie {
        Ok(cookie) => Finding::ok(what, format!("{cookie}; callers in other namespaces are left alone")),
        Err(error) => Finding::fail(what, format!("SO_NETNS_COOKIE: {error}; Linux 5.14 or later is needed")),
    }
}

fn sock_diag(listeners: io::Result<Vec<diag::Socket>>) -> Finding {
    match listeners {
        Ok(found) => Finding::ok("sock_diag", format!("{} listening TCP sockets seen", found.len())),
        Err(error) => Finding::fail("sock_diag", format!("{error}; without it no worker is known to be empty"))
            .fix("run", "modprobe -a inet_diag tcp_diag"),
    }
}

fn programs(loaded: anyhow::Result<Loaded>) -> Finding {
    match loaded.map(|loaded| loaded.missing) {
        Ok(missing) if missing.is_empty() => {
            Finding::ok("eBPF programs", "the kernel accepts all of them (loaded, not attached, dropped)")
        }
        Ok(missing) => {
            let why = |(name, error): &(&str, anyhow::Error)| format!("{}: {error:#}", without(name));
            let whys: Vec<_> = missing.iter().map(why).collect();
            Finding::warn("eBPF programs", format!("this kernel does without some, so {}", whys.join("; ")))
        }
        Err(error) => Finding::fail("eBPF programs", format!("{error:#}")),
    }
}

/// What a kernel does without although it accepts all programs.
fn crashes(arms: bool, counts_relatives: bool) -> Finding {
    let what = "killed workers";
    let without = |has: bool, late: &'static str| (!has).then_some(late);
    let late = [
        without(
            arms,
            "one that listens since before the daemon attached is noticed within 0.1 s instead of at once \
             (TCP_BPF_SOCK_OPS_CB_FLAGS; Linux 6.12 has it)",
        ),
        without(
            counts_relatives,
            "a server that forks is down when its socket closes, some time after it was killed (bpf_loop; Linux 5.17 has it)",
        ),
    ];
    let late: Vec<_> = late.into_iter().flatten().collect();
    if late.is_empty() {
        return Finding::ok(what, "are marked down at once, servers that fork and older ones, too");
    }
    Finding::warn(what, format!("are marked down at once, with exceptions: {}", late.join("; ")))
}

/// Room for the programs' notes on a socket: two elements of socket storage and their list take about 600 bytes (6.18, and
/// more with other users of it). Kernels give 20480 bytes a socket, or 131072 from 6.6 on.
fn storage(text: &str) -> Option<Finding> {
    let bytes: u64 = text.trim().parse().ok()?;
    let what = "socket storage";
    if bytes >= LEAST_OPTMEM {
        return Some(Finding::ok(what, format!("up to {bytes} bytes a socket (net.core.optmem_max)")));
    }
    let detail = format!(
        "net.core.optmem_max is {bytes} bytes, so the kernel may refuse the notes that steering keeps with each socket: \
         connections are still steered, but drains wait longer, and open connections are not counted in full"
    );
    Some(Finding::warn(what, detail).fix("run", "sysctl -w net.core.optmem_max=131072"))
}

/// What a kernel does not tell of refusals although it accepts all programs.
fn refusals(tells: bool) -> Finding {
    let what = "refused connections";
    if tells {
        return Finding::ok(what, "are counted at the worker's end, whatever their peer is");
    }
    let detail = "this kernel does not tell of connections that a closed port refuses (Linux 6.10 does): the column \
                  \"closed port\" of deployer report stays 0, and resets by a port that is closed are missing";
    Finding::warn(what, detail)
}

fn reaper(loaded: anyhow::Result<()>) -> Finding {
    let what = "kept-alive connections";
    match loaded {
        Ok(()) => {
            Finding::ok(what, "can be closed between two requests while a worker drains (loaded, tried, dropped)")
        }
        Err(error) => Finding::warn(
            what,
            format!("cannot be closed here, so a drain waits until their callers close them: {error:#}"),
        )
        .fix(
            "do",
            "run Linux 6.5 or later; or have callers end connections themselves, as deployer lb says for Varnish",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn what_a_kernel_can_do_counts_and_not_its_release() {
        for name in ["5.14.0-570.el9.x86_64", "2.6.78", "6.18.5", ""] {
            assert_eq!(release(name, &[], true).level, Level::Ok, "{name}");
            assert_eq!(release(name, &[], false).level, Level::Warn, "{name}");
        }
        let lacks = features::Missing::example();
        let finding = release("5.4.0", &[lacks], true);
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.to_string().contains("ring buffers (Linux 5.8 has it)"), "{finding}");
    }

    #[test]
    fn kernels_that_see_some_workers_end_late_are_told() {
        assert_eq!(crashes(true, true).level, Level::Ok);
        let old = crashes(false, false);
        assert_eq!(old.level, Level::Warn);
        for said in ["one that listens since before the daemon attached", "a server that forks", "Linux 6.12 has it"] {
            assert!(old.detail.contains(said), "{old}");
        }
        assert_eq!(crashes(true, false).level, Level::Warn);
    }

    #[test]
    fn kernels_that_do_not_tell_of_refusals_are_told() {
        assert_eq!((refusals(true).level, refusals(false).level), (Level::Ok, Level::Warn));
        let missing = |name| Ok(Loaded { missing: vec![(name, anyhow::anyhow!("no"))], counts_relatives: true });
        assert!(programs(missing("refusals")).detail.contains("closed port"));
        assert!(programs(missing("exits")).detail.contains("crashes"));
    }

    #[test]
    fn little_room_for_socket_storage_is_told() {
        let level = |text| storage(text).map(|finding| finding.level);
        assert_eq!(level("131072\n"), Some(Level::Ok));
        assert_eq!(level("4095\n"), Some(Level::Warn));
        assert_eq!(level("0"), Some(Level::Warn));
        assert_eq!(level("much"), None);
    }

    #[test]
    fn nohz_full_is_named_as_the_cause() {
        assert_eq!(processors("\n"), None);
        assert_eq!(processors("(null)\n"), None);
        assert_eq!(processors("2-7\n").as_deref(), Some("2-7"));
        let finding = barrier(false, false, Some("2-7"));
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.to_string().contains("2-7"), "{finding}");
    }

    #[test]
    fn what_is_missing_fails() {
        assert_eq!(btf(Path::new("/nonexistent")).level, Level::Fail);
        let none = || io::Error::other("none");
        assert_eq!(cgroup2(Err(none())).level, Level::Fail);
        assert_eq!(cookie(Err(none())).level, Level::Fail);
        assert_eq!(sock_diag(Err(none())).level, Level::Fail);
        assert_eq!(programs(Err(anyhow::anyhow!("no").context("loading"))).detail, "loading: no");
        // It works without.
        assert_eq!(reaper(Err(anyhow::anyhow!("no"))).level, Level::Warn);
    }
}
