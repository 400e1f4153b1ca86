//! Memory told from texts of files, and measured of this process.

use std::net::{Ipv4Addr, TcpListener};

use super::*;

const ROLLUP: &str = "55d0c0a00000-7ffd3a5fe000 ---p 00000000 00:00 0                          [rollup]\n\
                      Rss:                9000 kB\nPss:                4321 kB\nPss_Dirty:          1000 kB\n";
const STAT: &str = "anon 100\nfile 5000\nworkingset_refault_file 1\nactive_file 4000\ninactive_file 1000\n";

#[test]
fn texts() {
    assert_eq!(field(ROLLUP, "Pss:"), Some(4321 * 1024));
    assert_eq!(field("MemFree: 1 kB\nMemAvailable:   20 kB\n", "MemAvailable:"), Some(20 * 1024));
    for odd in [
        "",
        "Pss:",
        "Pss: kB",
        "Pss: -1 kB",
        "Pss: 1 MB",
        "Pss: 99999999999999999999 kB",
        "Pss: 18446744073709551615 kB",
    ] {
        assert_eq!(field(odd, "Pss:"), None, "{odd}");
    }
}

#[test]
fn what_is_left_in_a_cgroup() {
    assert_eq!(left(10_000, 6_000, STAT), 5_000);
    assert_eq!(left(10_000, 6_000, ""), 4_000);
    assert_eq!(left(10_000, 500, STAT), 10_000, "never more than the limit");
    assert_eq!(left(10_000, 20_000, STAT), 0);
}

fn cgroup(at: &Path, max: &str, current: &str) {
    fs::create_dir_all(at).unwrap();
    for (name, text) in [("memory.max", max), ("memory.current", current), ("memory.stat", STAT)] {
        fs::write(at.join(name), text).unwrap();
    }
}

#[test]
fn the_least_of_all_counts() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let (above, workers) = (root.join("above"), root.join("above/workers"));
    cgroup(&above, "10000\n", "9000\n");
    cgroup(&workers, "20000\n", "9000\n");
    let limit = Limit::Cgroup { directory: above.clone(), max: 10_000 };
    let tight = Room { bytes: 2_000, limit };
    assert_eq!(room(Some(&workers)).unwrap(), tight);
    assert_eq!(room(Some(&workers.join("not/there/yet"))).unwrap(), tight);

    let host = |cgroup: &Path| room(Some(cgroup)).unwrap().limit == Limit::Host;
    cgroup(&above, "max\n", "9000\n");
    cgroup(&workers, "18446744073709551615\n", "9000\n");
    assert!(host(&workers), "the host has less");
    fs::remove_file(workers.join("memory.max")).unwrap();
    assert!(host(&workers), "the memory controller is not enabled");
    assert!(host(Path::new("/nonexistent")) && room(None).unwrap().bytes > 0);

    cgroup(&workers, "much\n", "9000\n");
    let error = room(Some(&workers)).unwrap_err().to_string();
    assert!(error.ends_with("memory.max says \"much\", which makes no sense"), "{error}");
}

#[test]
fn this_process_is_measured_once() {
    let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
    let mut workers: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    workers.push(nobody);
    let used = used_by(&workers).unwrap();
    // Other tests of this process may just be starting children, which have all that it has until they execute.
    assert!(used.processes >= 1 && used.workers == 2 && used.bytes > MIB, "{used:?}");
    let (bytes, _) = of_process(std::process::id()).unwrap().unwrap();
    assert!(bytes > MIB);
    assert_eq!(used_by(&[nobody]).unwrap(), Used::default());
    // Above all pids there can be.
    assert_eq!(of_process(4_194_304).unwrap(), None);
}

fn used(mib: u64) -> Used {
    Used { bytes: mib * MIB, processes: 41, by_resident: 0, workers: 40 }
}

#[test]
fn enough() {
    let host = |mib: u64| Room { bytes: mib * MIB, limit: Limit::Host };
    assert_eq!(check(&used(4000), 40, 40, &host(4400)), Ok(()));
    assert_eq!(check(&used(4000), 40, 10, &host(1100)), Ok(()));
    assert!(check(&used(4000), 40, 10, &host(1099)).is_err());
    assert!(check(&used(4000), 40, 80, &host(8799)).is_err());
    assert_eq!(check(&Used::default(), 0, 40, &host(0)), Ok(()), "nothing runs");
    // Only half of them were found: each takes twice as much.
    assert!(check(&Used { workers: 20, ..used(4000) }, 40, 40, &host(8799)).is_err());
    assert!(check(&Used { bytes: u64::MAX, ..used(0) }, 1, usize::MAX, &host(1)).is_err());
}

#[test]
fn too_little_is_told() {
    let limit = Limit::Cgroup { directory: "/sys/fs/cgroup/workers".into(), max: 8192 * MIB };
    let room = Room { bytes: 1024 * MIB + 1, limit };
    assert_eq!(
        check(&used(4800), 40, 40, &room).unwrap_err(),
        "not enough memory for two pools: 40 more workers need about 5280 MiB (40 that run take 4800 MiB in 41 processes, \
         Pss; a tenth is added), and 1024 MiB are left below memory.max (8192 MiB) of /sys/fs/cgroup/workers. Raise \
         memory.max of that cgroup or free memory in it; give the second pool fewer workers (deploy.second); or go on \
         regardless with --force"
    );
    let host = Room { bytes: MIB, limit: Limit::Host };
    let why = check(&Used { by_resident: 1, ..used(4800) }, 40, 40, &host).unwrap_err();
    assert!(why.contains("resident") && why.contains("1 MiB are available on this host"), "{why}");
    let unknown = check(&Used::default(), 40, 40, &host).unwrap_err();
    assert!(unknown.contains("no process was found") && unknown.contains("--force"), "{unknown}");
}
